#include <algorithm>
#include <vector>

#include "mfac/columns.hpp"
#include "mfac/numbers.hpp"
#include "mfac/tiles.hpp"

namespace curvkern::mfac {
namespace {

// One block at a time, with room for what it needs.
class Block {
  public:
    Block(const Window& window, std::int64_t block, double damping, double norm)
        : window_(window),
          damping_(damping),
          norm_(norm),
          is_small_(block <= window.count),
          rows_(static_cast<std::size_t>(window.count)) {
        side_ = is_small_ ? block : window.count;
        stride_ = divided(side_, 8) * 8;
        const std::int64_t wide = kernels_.columns;
        packed_.resize(is_small_ ? divided(block, wide) * wide * window.count
                                 : Gram(window, 0, block).tile_size());
        system_.resize(side_ * stride_);
        root_.resize(side_ * stride_);
    }

    void diagonal(std::int64_t first, std::int64_t size, double* out) {
        std::fill_n(system_.data(), side_ * stride_, 0.0);
        if (is_small_) {
            small(first, size, out);
        } else {
            large(first, size, out);
        }
    }

  private:
    void small(std::int64_t first, std::int64_t size, double* out) {
        const std::int64_t m = window_.count, wide = kernels_.columns;
        point(window_, 0, m, first, rows_.data());
        kernels_.pack_columns[static_cast<int>(window_.storage)](rows_.data(), m, size,
                                                                 packed_.data());
        double* F = system_.data();
        for (std::int64_t j = 0; j < size; j += wide) {
            for (std::int64_t i = 0; i < std::min(size, j + wide); i += kernels_.rows) {
                kernels_.multiply(m, packed_.data() + i / wide * wide * m + i % wide, wide,
                                  packed_.data() + j * m, F + i * stride_ + j, stride_,
                                  std::min<std::int64_t>(kernels_.rows, size - i),
                                  std::min(wide, size - j));
            }
        }
        const double shift = norm_ * damping_;
        for (std::int64_t j = 0; j < size; ++j) F[j * stride_ + j] += shift;
        factorize(F, stride_, size, shift, root_.data(), true);
        std::fill_n(out, size, 0.0);
        for (std::int64_t k = 0; k < size; ++k) {
            const double* row = root_.data() + k * stride_;
            for (std::int64_t j = 0; j <= k; ++j) out[j] += norm_ * (row[j] * row[j]);
        }
    }

    void large(std::int64_t first, std::int64_t size, double* out) {
        const std::int64_t m = window_.count;
        const Gram work(window_, first, size);
        for (std::int64_t tile = 0; tile < work.tiles(); ++tile) {
            for (std::int64_t p = 0; p < work.panels(); ++p) work.pack(tile, p, packed_.data());
            for (std::int64_t p = 0; p < work.panels(); ++p) {
                work.multiply(tile, p, packed_.data(), system_.data());
            }
        }
        const double shift = norm_ * damping_;
        for (std::int64_t i = 0; i < m; ++i) {
            system_.data()[i * m + i] += shift;
        }
        factorize(system_.data(), m, m, shift, root_.data());
        const Squares squares(window_, root_.data());
        Squares::Scratch scratch(squares);
        for (std::int64_t j = 0; j < size; j += squares.tile()) {
            const std::int64_t width = std::min(squares.tile(), size - j);
            squares.compute(first + j, width, scratch);
            for (std::int64_t at = 0; at < width; ++at) {
                out[j + at] = (1 - scratch.sums.data()[at]) / damping_;
            }
        }
    }

    const ColumnKernels& kernels_ = column_table();
    const Window& window_;
    double damping_, norm_;
    std::int64_t side_, stride_;
    bool is_small_;
    std::vector<const void*> rows_;
    Numbers packed_, system_, root_;
};

}  // namespace

bool block_diagonal(const Window& window, std::int64_t block, double damping, double norm,
                    double* out, InterruptCheck interrupted) {
    const std::int64_t blocks = divided(window.d, block);
    const std::int64_t chunk = std::clamp<std::int64_t>(blocks / 64, 1, 64);
    return parallel_chunks(
        blocks, chunk, interrupted, [&](std::int64_t begin, std::int64_t end) {
            Block work(window, block, damping, norm);
            for (std::int64_t b = begin; b < end; ++b) {
                const std::int64_t first = b * block;
                work.diagonal(first, std::min(block, window.d - first), out + first);
            }
        });
}

}  // namespace curvkern::mfac
