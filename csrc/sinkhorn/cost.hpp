// Where costs come from: a stored matrix, or points between which they are computed.
//
// A provider stands for four rows. at(j) gives their costs at a whole vector of columns,
// tail(j) at the last, incomplete one. Rows behind the end repeat the last row.
//
// Costs of points come from differences, sum_k |x_ik - y_jk|^p: |x|^2 + |y|^2 - 2 x.y is
// half the work, but it cancels between points that are near each other and far from 0.
#pragma once

#include "sinkhorn.hpp"
#include "vectors.hpp"

namespace curvkern::sinkhorn {
CURVKERN_PER_ISA {

CURVKERN_HD std::int64_t smaller(std::int64_t a, std::int64_t b) {
    return a < b ? a : b;
}

// Stored as T, computed with as A.
template <class T, class A>
struct DenseRows {
    using Number = A;
    using Exact = DenseRows<T, double>;
    const T* row[rows_at_once];
    std::int64_t columns, whole;

    CURVKERN_HD DenseRows(const Problem& p, std::int64_t i) {
        columns = p.b.size;
        whole = columns - columns % width<A>;
        for (int r = 0; r < rows_at_once; ++r) {
            row[r] = static_cast<const T*>(p.cost) + smaller(i + r, p.a.size - 1) * columns;
        }
    }

    CURVKERN_HD Quad<A> at(std::int64_t j) const {
        return {{load<A>(row[0] + j), load<A>(row[1] + j)},
                {load<A>(row[2] + j), load<A>(row[3] + j)}};
    }

    CURVKERN_HD Quad<A> tail(std::int64_t j) const {
        const std::int64_t n = columns - j;
        return {{load<A>(row[0] + j, n), load<A>(row[1] + j, n)},
                {load<A>(row[2] + j, n), load<A>(row[3] + j, n)}};
    }
};

template <Cost Kind, class A>
struct PointRows {
    using Number = A;
    using Exact = PointRows<Kind, double>;
    const A* x[rows_at_once];
    const A* y;
    std::int64_t columns, whole, stride;
    int dims;

    CURVKERN_HD PointRows(const Problem& p, std::int64_t i) {
        columns = p.b.size;
        whole = (columns + width<A> - 1) / width<A> * width<A>;
        stride = padded(columns);
        dims = p.dims;
        const A* first;
        if constexpr (is_double<A>) {
            first = p.x;
            y = p.y_transposed;
        } else {
            first = p.x32;
            y = p.y_transposed32;
        }
        for (int r = 0; r < rows_at_once; ++r) {
            x[r] = first + smaller(i + r, p.a.size - 1) * dims;
        }
    }

    CURVKERN_HD Quad<A> at(std::int64_t j) const {
        Quad<A> sum{};
        const A* column = y + j;
        for (int k = 0; k < dims; ++k, column += stride) {
            const A coordinates[] = {x[0][k], x[1][k], x[2][k], x[3][k]};
            const Quad<A> d = broadcast(coordinates) - spread(load<A>(column));
            if constexpr (Kind == Cost::l1) {
                sum = sum + abs(d);
            } else {
                sum = d * d + sum;
            }
        }
        if constexpr (Kind == Cost::euclidean) sum = sqrt(sum);
        return sum;
    }

    CURVKERN_HD Quad<A> tail(std::int64_t j) const { return at(j); }
};

// body(j, costs of four rows) for every vector of columns in [begin, end), begin and end
// multiples of the alignment or end the last column.
template <class Rows, class Body>
CURVKERN_HD void for_columns(const Rows& rows, std::int64_t begin, std::int64_t end,
                             Body body) {
    constexpr int step = width<typename Rows::Number>;
    const std::int64_t whole = smaller(end, rows.whole);
    std::int64_t j = begin;
    for (; j < whole; j += step) body(j, rows.at(j));
    if (j < end) body(j, rows.tail(j));
}

}  // namespace isa
}  // namespace curvkern::sinkhorn
