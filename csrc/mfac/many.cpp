// The passes for many vectors at once: what bounds them is arithmetic, 2 k operations for each
// element of G and pass, so rows become float64 once for all vectors, while the lines of those
// that come next are fetched.
#include <algorithm>
#include <vector>

#include "core/pages.hpp"
#include "mfac/ahead.hpp"
#include "mfac/columns.hpp"
#include "mfac/numbers.hpp"
#include "mfac/passes.hpp"

namespace curvkern::mfac {
namespace {

// Columns of a tile, with a line between its rows lest they all fall into one set of a cache;
// rows that become float64 together, for the second cache; vectors whose sums are held
// together.
constexpr std::int64_t many_columns = run, stride = run + 8, chunk = 32, most_vectors = 48;

// A chunk of rows in a tile of columns, in float64.
class WideRows {
  public:
    explicit WideRows(const Window& window) : window_(window), wide_(chunk * stride) {}

    // Calls body(first, size) for chunks of rows.
    template <class Body>
    void each(std::int64_t j, std::int64_t width, Body body) {
        const auto widen = table().widen[index(window_.storage)];
        for (std::int64_t first = 0; first < window_.count; first += chunk) {
            const std::int64_t size = std::min(chunk, window_.count - first);
            for (std::int64_t i = 0; i < size; ++i) {
                widen(element(window_, first + i, j), row(i), width);
            }
            body(first, size);
        }
    }
    double* row(std::int64_t i) { return wide_.data() + i * stride; }

  private:
    const Window& window_;
    Numbers wide_;
};

class Products {
  public:
    explicit Products(const RightSides& right)
        : right_(right),
          k_(right.count()),
          groups_((k_ + kernels_.together - 1) / kernels_.together),
          vector_(k_ * stride),
          rows_(right.window) {}

    void add(std::int64_t j, std::int64_t width, double* sums) {
        right_.widen(j, width, stride, vector_.data());
        Ahead ahead(j + many_columns, many_columns, right_.window.d,
                    (right_.window.count + rows - 1) / rows * groups_);
        ahead.add(right_.window);
        ahead.add(right_.v);
        rows_.each(j, width, [&](std::int64_t first, std::int64_t size) {
            for (std::int64_t group = 0; group < groups_; ++group) {
                const std::int64_t r = group * k_ / groups_;
                const std::int64_t end = (group + 1) * k_ / groups_;
                for (std::int64_t i = 0; i < size; i += rows) {
                    multiply(i, size - i, r, end - r, width, sums + (first + i) * k_ + r,
                             ahead.next());
                }
            }
        });
    }

  private:
    // Rows i .. i + 3 of a chunk with vectors r .. r + k - 1.
    void multiply(std::int64_t i, std::int64_t valid, std::int64_t r, std::int64_t k,
                  std::int64_t width, double* sums, Lines ahead) {
        const double* four[rows];
        double* target[rows];
        double rest[rows][8] = {};
        for (int n = 0; n < rows; ++n) {
            four[n] = rows_.row(n < valid ? i + n : i);
            target[n] = n < valid ? sums + n * k_ : rest[n];
        }
        kernels_.dot_many(four, width, vector_.data() + r * stride, stride, k, target, ahead);
    }

    const Kernels& kernels_ = table();
    const RightSides& right_;
    std::int64_t k_, groups_;
    Numbers vector_;
    WideRows rows_;
};

// c[(r / rows m + i) rows + r % rows] from c[r m + i], as add_rows() takes it.
Numbers in_groups(const double* coefficient, std::int64_t k, std::int64_t m) {
    const std::int64_t high = column_table().rows;
    Numbers c((k + high - 1) / high * high * m);
    for (std::int64_t r = 0; r < k; ++r) {
        double* to = c.data() + r / high * high * m + r % high;
        for (std::int64_t i = 0; i < m; ++i) to[i * high] = coefficient[r * m + i];
    }
    return c;
}

}  // namespace

bool products_of_many(const RightSides& right, double* out, InterruptCheck interrupted) {
    const std::int64_t k = right.count();
    if (k <= most_vectors) {
        return sum_blocks(right.window, k, out, interrupted,
                          [&](std::int64_t begin, std::int64_t end, double* sums) {
                              Products work(right);
                              for (std::int64_t j = begin; j < end; j += many_columns) {
                                  work.add(j, std::min(many_columns, end - j), sums);
                              }
                          });
    }
    const Vectors& v = right.v;
    const Window& window = right.window;
    for (std::int64_t done = 0; done < k;) {
        const bool is_first = done == 0 && right.incoming != nullptr;
        const std::int64_t at = done - (k - v.k) + (is_first ? 1 : 0);
        const std::int64_t size =
            std::min<std::int64_t>(most_vectors - (is_first ? 1 : 0), v.k - at);
        const Vectors part{element(v, window.d, at, 0), v.is_float32, size};
        const RightSides some{window, part, is_first ? right.incoming : nullptr, right.into};
        if (!products_of_many(some, out + done * window.count, interrupted)) return false;
        done += some.count();
    }
    return true;
}

bool combine_many(const Window& window, const double* coefficient, double alpha,
                  const Vectors* v, const Vectors& out, InterruptCheck interrupted) {
    const ColumnKernels& kernels = column_table();
    const std::int64_t wide = kernels.columns, high = kernels.rows, m = window.count;
    const Numbers c = in_groups(coefficient, out.k, m);
    prefer_huge_pages(out.data, out.k * window.d * (out.is_float32 ? 4 : 8));
    return parallel_chunks(
        window.d, block_size(window.d), interrupted, [&](std::int64_t begin, std::int64_t end) {
            WideRows part(window);
            Numbers sums(out.k * stride);
            for (std::int64_t j = begin; j < end; j += many_columns) {
                const std::int64_t width = std::min(many_columns, end - j);
                Ahead ahead(j + many_columns, many_columns, window.d,
                            (m + chunk - 1) / chunk * ((width + wide - 1) / wide) *
                                ((out.k + high - 1) / high));
                ahead.add(window);
                if (v != nullptr) ahead.add(*v);
                ahead.add(out);
                std::fill_n(sums.data(), out.k * stride, 0.0);
                part.each(j, width, [&](std::int64_t first, std::int64_t size) {
                    for (std::int64_t at = 0; at < width; at += wide) {
                        for (std::int64_t r = 0; r < out.k; r += high) {
                            kernels.add_rows(size, c.data() + r * m + first * high,
                                             part.row(0) + at, sums.data() + r * stride + at,
                                             stride, std::min(high, out.k - r),
                                             std::min(wide, width - at), ahead.next());
                        }
                    }
                });
                finish_sums(v, alpha, out, window.d, j, width, stride, sums.data());
            }
        });
}

}  // namespace curvkern::mfac
