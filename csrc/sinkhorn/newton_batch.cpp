#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>

#include "sinkhorn/newton.hpp"

namespace curvkern::newton {
namespace {

// Problems up to this size go to one thread each; larger ones, one after the other, to all.
constexpr std::int64_t small_problem = 1 << 16;

double entry(const DenseProblem& problem, std::int64_t i, std::int64_t j) {
    const std::int64_t k = i * problem.m + j;
    return problem.cost_is_float32 ? static_cast<const float*>(problem.cost)[k]
                                   : static_cast<const double*>(problem.cost)[k];
}

// -lambda eps log sum_k weight_k exp((potential_k - cost(k)) / eps); 0 where no k has mass.
template <class Cost>
double transform(const double* weight, const double* potential, std::int64_t size, double eps,
                 double rho, Cost cost) {
    double top = -HUGE_VAL;
    for (std::int64_t k = 0; k < size; ++k) {
        if (weight[k] > 0) top = std::max(top, (potential[k] - cost(k)) / eps);
    }
    if (!(top > -HUGE_VAL)) return 0;
    double sum = 0;
    for (std::int64_t k = 0; k < size; ++k) {
        if (weight[k] > 0) {
            sum += weight[k] * std::exp((potential[k] - cost(k)) / eps - top);
        }
    }
    const double lambda = rho == HUGE_VAL ? 1 : rho / (rho + eps);
    return -lambda * eps * (top + std::log(sum));
}

double mean(const double* weight, const double* x, std::int64_t size) {
    double total = 0, moment = 0;
    for (std::int64_t k = 0; k < size; ++k) {
        total += weight[k];
        moment += weight[k] * x[k];
    }
    return moment / total;
}

// Points without mass get the potential that the optimality conditions would give them; with
// hard marginals the means of f and g under a and b are made equal.
void complete(const DenseProblem& problem, double* f, double* g) {
    for (std::int64_t i = 0; i < problem.n; ++i) {
        if (problem.a[i] > 0) continue;
        f[i] = transform(problem.b, g, problem.m, problem.eps, problem.rho_a,
                         [&](std::int64_t j) { return entry(problem, i, j); });
    }
    for (std::int64_t j = 0; j < problem.m; ++j) {
        if (problem.b[j] > 0) continue;
        g[j] = transform(problem.a, f, problem.n, problem.eps, problem.rho_b,
                         [&](std::int64_t i) { return entry(problem, i, j); });
    }
    if (problem.rho_a < HUGE_VAL || problem.rho_b < HUGE_VAL) return;
    const double shift = 0.5 * (mean(problem.b, g, problem.m) - mean(problem.a, f, problem.n));
    for (std::int64_t i = 0; i < problem.n; ++i) f[i] += shift;
    for (std::int64_t j = 0; j < problem.m; ++j) g[j] -= shift;
}

}  // namespace

bool solve_newton_batch(const DenseBatch& batch, const NewtonOptions& options,
                        InterruptCheck check) {
    const std::int64_t n = batch.n, m = batch.m;
    Interrupt interrupt(check);
    std::mutex mutex;
    std::exception_ptr failure;
    const auto run = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t k = begin; k < end && !interrupt.stop(); ++k) {
            try {
                const std::int64_t bytes = n * m * (batch.cost_is_float32 ? 4 : 8);
                const DenseProblem problem{n,
                                           m,
                                           batch.a + k * n,
                                           batch.b + k * m,
                                           static_cast<const char*>(batch.cost) + k * bytes,
                                           batch.cost_is_float32,
                                           batch.eps[k],
                                           batch.rho[2 * k],
                                           batch.rho[2 * k + 1]};
                double* f = batch.f + k * n;
                double* g = batch.g + k * m;
                NewtonResult result{};
                if (!solve_newton(problem, options, f, g, batch.trace + k * batch.trace_size,
                                  batch.trace_size, result, interrupt)) {
                    return;
                }
                complete(problem, f, g);
                batch.result[3 * k] = result.error;
                batch.result[3 * k + 1] = static_cast<double>(result.iterations);
                batch.result[3 * k + 2] = result.converged;
            } catch (...) {
                const std::lock_guard<std::mutex> lock(mutex);
                failure = std::current_exception();
                interrupt.set();
            }
        }
    };
    if (n * m <= small_problem) {
        parallel_chunks(batch.size, 1, check, run);
    } else {
        run(0, batch.size);
    }
    if (failure) std::rethrow_exception(failure);
    return !interrupt.stop();
}

}  // namespace curvkern::newton
