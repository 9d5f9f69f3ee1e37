#include "sinkhorn/newton_laplacian.hpp"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

namespace curvkern::newton {

void LaplacianFactor::begin(std::int64_t vertices) {
    edges_.clear();
    first_.assign(vertices, -1);
    degree_.assign(vertices, 0);
    ground_.assign(vertices, 0.0);
    eliminated_.assign(vertices, false);
}

void LaplacianFactor::link(std::int32_t from, std::int32_t to, double weight) {
    edges_.push_back({to, weight, first_[from]});
    first_[from] = static_cast<std::int64_t>(edges_.size()) - 1;
    ++degree_[from];
}

void LaplacianFactor::add_edge(std::int64_t u, std::int64_t v, double weight) {
    link(static_cast<std::int32_t>(u), static_cast<std::int32_t>(v), weight);
    link(static_cast<std::int32_t>(v), static_cast<std::int32_t>(u), weight);
}

// SplitMix64, 53 bits in [0, 1).
double LaplacianFactor::uniform() {
    std::uint64_t z = (random_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

// The neighbours that are left, one entry each, lightest first.
void LaplacianFactor::collect(std::int32_t vertex) {
    neighbours_.clear();
    for (std::int64_t e = first_[vertex]; e >= 0; e = edges_[e].next) {
        if (!eliminated_[edges_[e].to]) neighbours_.push_back(edges_[e]);
    }
    std::sort(neighbours_.begin(), neighbours_.end(), [](const Edge& x, const Edge& y) {
        return x.to != y.to ? x.to < y.to : x.weight < y.weight;
    });
    std::size_t count = 0;
    for (const Edge& edge : neighbours_) {
        if (count > 0 && neighbours_[count - 1].to == edge.to) {
            neighbours_[count - 1].weight += edge.weight;
        } else {
            neighbours_[count++] = edge;
        }
    }
    neighbours_.resize(count);
    std::sort(neighbours_.begin(), neighbours_.end(), [](const Edge& x, const Edge& y) {
        return x.weight != y.weight ? x.weight < y.weight : x.to < y.to;
    });
}

void LaplacianFactor::factor() {
    using Candidate = std::pair<std::int64_t, std::int32_t>;  // degree, vertex
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    const auto vertices = static_cast<std::int32_t>(first_.size());
    for (std::int32_t v = 0; v < vertices; ++v) queue.push({degree_[v], v});
    random_ = 0;
    columns_.clear();
    entry_vertex_.clear();
    entry_share_.clear();
    while (!queue.empty()) {
        const auto [degree, vertex] = queue.top();
        queue.pop();
        if (eliminated_[vertex]) continue;
        if (degree != degree_[vertex]) {
            queue.push({degree_[vertex], vertex});
            continue;
        }
        collect(vertex);
        eliminated_[vertex] = true;
        const double ground = ground_[vertex];
        double total = ground;
        for (const Edge& edge : neighbours_) total += edge.weight;
        for (const Edge& edge : neighbours_) {
            entry_vertex_.push_back(edge.to);
            entry_share_.push_back(edge.weight / total);
            --degree_[edge.to];
        }
        columns_.push_back({vertex, total, static_cast<std::int64_t>(entry_vertex_.size())});
        // The ground is a neighbour of all that costs no edge: its part is exact.
        for (const Edge& edge : neighbours_) {
            if (total > 0) ground_[edge.to] += edge.weight * (ground / total);
        }
        double rest = total - ground;
        for (std::size_t k = 0; k + 1 < neighbours_.size(); ++k) {
            rest -= neighbours_[k].weight;
            double draw = uniform() * rest;
            std::size_t l = k + 1;
            for (; l + 1 < neighbours_.size(); ++l) {
                draw -= neighbours_[l].weight;
                if (draw < 0) break;
            }
            const double weight = neighbours_[k].weight * (std::max(rest, 0.0) / total);
            if (weight > 0) add_edge(neighbours_[k].to, neighbours_[l].to, weight);
        }
    }
}

void LaplacianFactor::solve(double* x) const {
    std::int64_t entry = 0;
    for (const Column& column : columns_) {
        const double value = x[column.vertex];
        for (; entry < column.end; ++entry) {
            x[entry_vertex_[entry]] += entry_share_[entry] * value;
        }
    }
    for (auto column = columns_.rbegin(); column != columns_.rend(); ++column) {
        const std::int64_t begin = column + 1 == columns_.rend() ? 0 : (column + 1)->end;
        double value = column->total > 0 ? x[column->vertex] / column->total : 0;
        for (std::int64_t k = begin; k < column->end; ++k) {
            value += entry_share_[k] * x[entry_vertex_[k]];
        }
        x[column->vertex] = value;
    }
}

}  // namespace curvkern::newton
