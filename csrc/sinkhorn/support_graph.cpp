#include "sinkhorn/support_graph.hpp"

#include <cmath>
#include <cstddef>

namespace curvkern::sparsemax {
namespace {

double dot(const std::vector<double>& x, const std::vector<double>& y) {
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
    return sum;
}

}  // namespace

void SupportGraph::append(const SupportGraph& next) {
    const std::int64_t shift = start.back();
    for (std::size_t j = 1; j < next.start.size(); ++j) start.push_back(shift + next.start[j]);
    row.insert(row.end(), next.row.begin(), next.row.end());
    value.insert(value.end(), next.value.begin(), next.value.end());
}

void SupportGraph::multiply(const double* x, double damping, double* y) const {
    for (std::int64_t i = 0; i < rows; ++i) y[i] = damping * x[i];
    for (std::size_t j = 0; j + 1 < start.size(); ++j) {
        const std::int64_t begin = start[j], end = start[j + 1];
        double mean = 0;
        for (std::int64_t e = begin; e < end; ++e) mean += x[row[e]];
        mean /= static_cast<double>(end - begin);
        for (std::int64_t e = begin; e < end; ++e) y[row[e]] += x[row[e]] - mean;
    }
}

std::int64_t SupportGraph::solve(const double* residual, double damping, double tolerance,
                                 std::int64_t max_iter, InterruptCheck interrupted,
                                 double* step) const {
    const auto n = static_cast<std::size_t>(rows);
    std::vector<double> inverse(n, damping), r(residual, residual + n), z(n), p(n), q(n);
    for (std::size_t j = 0; j + 1 < start.size(); ++j) {
        const double share = 1 - 1 / static_cast<double>(start[j + 1] - start[j]);
        for (std::int64_t e = start[j]; e < start[j + 1]; ++e) inverse[row[e]] += share;
    }
    for (std::size_t i = 0; i < n; ++i) {
        inverse[i] = 1 / inverse[i];
        step[i] = 0;
        p[i] = z[i] = inverse[i] * r[i];
    }
    const double goal = tolerance * std::sqrt(dot(r, r));
    double slope = dot(r, z);
    std::int64_t iteration = 0;
    while (iteration < max_iter && std::sqrt(dot(r, r)) > goal) {
        if (iteration % 32 == 31 && interrupted()) return -1;
        multiply(p.data(), damping, q.data());
        const double curvature = dot(p, q);
        if (!(curvature > 0)) break;
        const double alpha = slope / curvature;
        for (std::size_t i = 0; i < n; ++i) {
            step[i] += alpha * p[i];
            r[i] -= alpha * q[i];
            z[i] = inverse[i] * r[i];
        }
        const double next = dot(r, z), beta = next / slope;
        for (std::size_t i = 0; i < n; ++i) p[i] = z[i] + beta * p[i];
        slope = next;
        ++iteration;
    }
    return iteration;
}

}  // namespace curvkern::sparsemax
