// An approximate Cholesky factor of the matrix of a weighted graph: the preconditioner for
// plans whose graph is almost a tree, where conjugate gradients need many thousand iterations
// without one.
//
// With the sign of one side flipped, the Hessian of the dual is the Laplacian of the bipartite
// graph of the plan's entries plus a non-negative diagonal, which is an edge to the ground.
// Eliminating a vertex v of total weight s joins its neighbours u_1, u_2, ... (weights
// w_1 <= w_2 <= ...) in a clique of weights w_k w_l / s. Instead each u_k is joined with one
// later u_l alone, drawn with probability w_l / sum_{l > k} w_l, with weight
// w_k sum_{l > k} w_l / s: the same in expectation, and exact up to two neighbours.
// Source: Kyng and Sachdeva, "Approximate Gaussian Elimination for Laplacians", FOCS 2016;
// Gao, Kyng, Spielman, "Robust and Practical Solution of Laplacian Equations by Approximate
// Elimination", arXiv 2303.00709. Vertices of few neighbours go first. The draws come from a
// generator of fixed seed.
#pragma once

#include <cstdint>
#include <vector>

namespace curvkern::newton {

class LaplacianFactor {
  public:
    // Edges are added after begin() and before factor().
    void begin(std::int64_t vertices);
    void add_edge(std::int64_t u, std::int64_t v, double weight);  // weight > 0
    void add_ground(std::int64_t v, double weight) { ground_[v] += weight; }
    void factor();

    // x (vertices,) is the right side, and then the solution.
    void solve(double* x) const;

  private:
    struct Edge {
        std::int32_t to;
        double weight;
        std::int64_t next;  // in the list of the same vertex; -1 ends it
    };
    struct Column {  // of the factor: an eliminated vertex
        std::int32_t vertex;
        double total;
        std::int64_t end;  // of its entries
    };

    void link(std::int32_t from, std::int32_t to, double weight);
    void collect(std::int32_t vertex);
    double uniform();

    std::vector<Edge> edges_;
    std::vector<std::int64_t> first_, degree_;
    std::vector<double> ground_;
    std::vector<bool> eliminated_;
    std::vector<Column> columns_;
    std::vector<std::int32_t> entry_vertex_;
    std::vector<double> entry_share_;  // of the column's total weight
    std::vector<Edge> neighbours_;
    std::uint64_t random_ = 0;
};

}  // namespace curvkern::newton
