// The passes for many vectors at once: what bounds them is arithmetic, 2 k operations for each
// element of G and pass, so rows become float64 once for all vectors, while the lines of those
// that come next are fetched.
#include <algorithm>
#include <vector>

#include "mfac/columns.hpp"
#include "mfac/passes.hpp"

namespace curvkern::mfac {
namespace {

// Of the products: columns of a tile, whose vectors in groups stay in the first cache; rows
// that become float64 together, in the second; vectors whose sums are held together.
constexpr std::int64_t short_tile = 512, chunk = 32, most_vectors = 48;

class Products {
  public:
    explicit Products(const RightSides& right)
        : right_(right),
          k_(right.count()),
          vector_(static_cast<std::size_t>(k_ * short_tile)),
          wide_(static_cast<std::size_t>(chunk * short_tile)) {}

    void add(std::int64_t j, std::int64_t width, double* sums) {
        right_.widen(j, width, short_tile, vector_.data());
        const std::int64_t count = right_.window.count, group = kernels_.together;
        const std::int64_t calls = (count + rows - 1) / rows * ((k_ + group - 1) / group);
        Ahead ahead(right_.window, j + short_tile, short_tile, calls);
        for (std::int64_t first = 0; first < count; first += chunk) {
            const std::int64_t last = std::min(count, first + chunk);
            for (std::int64_t i = first; i < last; ++i) {
                kernels_.widen[index(right_.window.storage)](element(right_.window, i, j),
                                                             row(i - first), width);
            }
            for (std::int64_t r = 0; r < k_; r += group) {
                for (std::int64_t i = first; i < last; i += rows) {
                    ahead.fetch();
                    multiply(i, i - first, last - i, r, width, sums);
                }
            }
        }
    }

  private:
    double* row(std::int64_t at) { return wide_.data() + at * short_tile; }

    void multiply(std::int64_t i, std::int64_t at, std::int64_t valid, std::int64_t r,
                  std::int64_t width, double* sums) {
        const std::int64_t k = std::min<std::int64_t>(kernels_.together, k_ - r);
        const void* four[2 * rows];
        double* target[rows];
        double rest[rows][8] = {};
        for (int n = 0; n < rows; ++n) {
            four[n] = four[rows + n] = row(n < valid ? at + n : at);
            target[n] = n < valid ? sums + (i + n) * k_ + r : rest[n];
        }
        kernels_.dot[index(Storage::float64)](four, width, vector_.data() + r * short_tile,
                                              short_tile, k, target);
    }

    const Kernels& kernels_ = table();
    const RightSides& right_;
    std::int64_t k_;
    std::vector<double> vector_, wide_;
};

}  // namespace

bool products_of_many(const RightSides& right, double* out, InterruptCheck interrupted) {
    const std::int64_t k = right.count();
    if (k <= most_vectors) {
        return sum_blocks(right.window, k, out, interrupted,
                          [&](std::int64_t begin, std::int64_t end, double* sums) {
                              Products work(right);
                              for (std::int64_t j = begin; j < end; j += short_tile) {
                                  work.add(j, std::min(short_tile, end - j), sums);
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
    const std::int64_t d = window.d, m = window.count, k = out.k;
    const std::int64_t wide = kernels.columns, high = kernels.rows;
    const std::int64_t panels =
        std::clamp<std::int64_t>(131072 / (std::max<std::int64_t>(m, 1) * wide), 1, 8);
    const std::int64_t size = panels * wide;
    // c[(r / high m + i) high + r % high]
    std::vector<double> c(static_cast<std::size_t>((k + high - 1) / high * high * m), 0.0);
    for (std::int64_t r = 0; r < k; ++r) {
        for (std::int64_t i = 0; i < m; ++i) {
            c[static_cast<std::size_t>((r / high * m + i) * high + r % high)] =
                coefficient[r * m + i];
        }
    }
    return parallel_chunks(
        d, block_size(d), interrupted, [&](std::int64_t begin, std::int64_t end) {
            std::vector<double> packed(static_cast<std::size_t>(m * size)),
                sums(static_cast<std::size_t>(k * size));
            std::vector<const void*> row(static_cast<std::size_t>(m));
            for (std::int64_t j = begin; j < end; j += size) {
                const std::int64_t width = std::min(size, end - j);
                for (std::int64_t i = 0; i < m; ++i) {
                    row[static_cast<std::size_t>(i)] = element(window, i, j);
                }
                kernels.pack_columns[index(window.storage)](row.data(), m, width,
                                                            packed.data());
                std::fill(sums.begin(), sums.end(), 0.0);
                Ahead ahead(window, j + size, size,
                            (width + wide - 1) / wide * ((k + high - 1) / high));
                for (std::int64_t at = 0; at < width; at += wide) {
                    for (std::int64_t r = 0; r < k; r += high) {
                        ahead.fetch();
                        kernels.multiply(m, c.data() + r * m, high, packed.data() + at * m,
                                         sums.data() + r * size + at, size,
                                         std::min(high, k - r), std::min(wide, width - at));
                    }
                }
                finish_sums(v, alpha, out, d, j, width, size, sums.data());
            }
        });
}

}  // namespace curvkern::mfac
