#include "mfac/columns.hpp"

#include <algorithm>
#include <chrono>
#include <vector>

#include "mfac/numbers.hpp"

namespace curvkern::mfac {
namespace {

constexpr std::int64_t steps = 128;  // columns of a tile: a panel of them fits the first cache
constexpr std::int64_t buffer = 131072;  // numbers of a tile that the second holds
constexpr int most_columns = 32;         // of a panel

std::int64_t divided(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

// Pointers to `count` rows of a window, from a column on.
void point(const Window& window, std::int64_t first, std::int64_t count, std::int64_t column,
           const void** row) {
    const std::int64_t size = element_size(window.storage);
    for (std::int64_t i = 0; i < count; ++i) {
        row[i] = static_cast<const char*>(window.data) +
                 (window.slot[first + i] * window.stride + column) * size;
    }
}

// The tiles of K = G G' above the diagonal, from panels of rows, for columns from `first` on.
class Gram {
  public:
    Gram(const Window& window, std::int64_t first, std::int64_t columns)
        : window_(window),
          first_(first),
          columns_(columns),
          panels_(divided(window.count, kernels_.columns)) {}

    std::int64_t panels() const { return panels_; }
    std::int64_t tile_size() const { return panels_ * kernels_.columns * steps; }
    std::int64_t tiles() const { return divided(columns_, steps); }

    // Panel p of a tile of columns, into the place of the tile in a buffer.
    void pack(std::int64_t tile, std::int64_t p, double* to) const {
        const std::int64_t first = p * kernels_.columns;
        const std::int64_t count =
            std::min<std::int64_t>(kernels_.columns, window_.count - first);
        const void* row[most_columns];
        point(window_, first, count, first_ + tile * steps, row);
        kernels_.pack_rows[static_cast<int>(window_.storage)](row, count, width(tile),
                                                              to + first * steps);
    }

    // Adds columns p of K, down to the diagonal.
    void multiply(std::int64_t tile, std::int64_t p, const double* packed, double* out) const {
        const std::int64_t wide = kernels_.columns, m = window_.count;
        const std::int64_t end = std::min(m, (p + 1) * wide);
        for (std::int64_t i = 0; i < end; i += kernels_.rows) {
            kernels_.multiply(width(tile), packed + i / wide * wide * steps + i % wide, wide,
                              packed + p * wide * steps, out + i * m + p * wide, m,
                              std::min<std::int64_t>(kernels_.rows, m - i),
                              std::min(wide, m - p * wide));
        }
    }

  private:
    std::int64_t width(std::int64_t tile) const {
        return std::min(steps, columns_ - tile * steps);
    }

    const ColumnKernels& kernels_ = column_table();
    const Window& window_;
    std::int64_t first_, columns_, panels_;
};

// Each thread takes chunks of columns and all of K: for few rows, whose K are small beside G.
bool gram_by_columns(const Gram& work, std::int64_t chunks, std::int64_t m, double* out,
                     InterruptCheck interrupted) {
    const std::int64_t size = divided(work.tiles(), chunks);
    Numbers partial(chunks * m * m);
    const bool finished = parallel_chunks(
        work.tiles(), size, interrupted, [&](std::int64_t begin, std::int64_t end) {
            Numbers packed(work.tile_size());
            double* sums = partial.data() + begin / size * m * m;
            for (std::int64_t tile = begin; tile < end; ++tile) {
                for (std::int64_t p = 0; p < work.panels(); ++p) {
                    work.pack(tile, p, packed.data());
                }
                for (std::int64_t p = 0; p < work.panels(); ++p) {
                    work.multiply(tile, p, packed.data(), sums);
                }
            }
        });
    for (std::int64_t at = 0; at < m * m; ++at) {
        double sum = 0;
        for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
            sum += partial.data()[chunk * m * m + at];
        }
        out[at] = sum;
    }
    return finished;
}

// Threads share the columns of K, and some tiles of G that lie in float64 for all of them.
bool gram_by_panels(const Gram& work, std::int64_t m, double* out, InterruptCheck interrupted) {
    const std::int64_t together =
        std::clamp<std::int64_t>(buffer / work.tile_size(), 1, work.tiles());
    const std::int64_t panels = work.panels();
    Numbers packed(together * work.tile_size());
    std::fill_n(out, m * m, 0.0);
    // Regions are too short to ask by themselves.
    using Clock = std::chrono::steady_clock;
    Clock::time_point asked = Clock::now();
    for (std::int64_t first = 0; first < work.tiles(); first += together) {
        if (Clock::now() - asked > std::chrono::milliseconds(50)) {
            if (interrupted()) return false;
            asked = Clock::now();
        }
        const std::int64_t count = std::min(together, work.tiles() - first);
        const auto place = [&](std::int64_t tile) {
            return packed.data() + (tile - first) * work.tile_size();
        };
        const bool finished =
            parallel_chunks(count * panels, 1, interrupted,
                            [&](std::int64_t at, std::int64_t) {
                                const std::int64_t tile = first + at / panels;
                                work.pack(tile, at % panels, place(tile));
                            }) &&
            parallel_chunks(panels, 1, interrupted, [&](std::int64_t at, std::int64_t) {
                const std::int64_t p = panels - 1 - at;  // the longest first
                for (std::int64_t tile = first; tile < first + count; ++tile) {
                    work.multiply(tile, p, place(tile), out);
                }
            });
        if (!finished) return false;
    }
    return true;
}

// |R g_j|^2 for the columns g_j of a window, from panels of columns.
class Squares {
  public:
    struct Scratch {
        explicit Scratch(const Squares& work)
            : packed(work.window_.count * work.tile_),
              sums(work.tile_),
              row(static_cast<std::size_t>(work.window_.count)) {}
        Numbers packed, sums;
        std::vector<const void*> row;
    };

    Squares(const Window& window, const double* root)
        : window_(window), panels_(divided(window.count, kernels_.rows)) {
        const std::int64_t m = window.count, high = kernels_.rows, wide = kernels_.columns;
        tile_ = std::clamp<std::int64_t>(buffer / (std::max<std::int64_t>(m, 1) * wide), 1, 8) *
                wide;
        roots_.resize(start(panels_));
        for (std::int64_t i = 0; i < m; ++i) {
            double* to = roots_.data() + start(i / high) + i % high;
            for (std::int64_t k = 0; k <= i; ++k) to[k * high] = root[i * m + k];
        }
    }

    std::int64_t tile() const { return tile_; }

    // The squares of a tile of columns, into `sums`.
    void compute(std::int64_t first, std::int64_t size, Scratch& scratch) const {
        const std::int64_t m = window_.count, wide = kernels_.columns;
        point(window_, 0, m, first, scratch.row.data());
        kernels_.pack_columns[static_cast<int>(window_.storage)](scratch.row.data(), m, size,
                                                                 scratch.packed.data());
        std::fill_n(scratch.sums.data(), tile_, 0.0);
        for (std::int64_t p = 0; p < panels_; ++p) {
            for (std::int64_t c = 0; c < size; c += wide) {
                kernels_.squares(std::min<std::int64_t>(m, (p + 1) * kernels_.rows),
                                 roots_.data() + start(p), scratch.packed.data() + c * m,
                                 scratch.sums.data() + c);
            }
        }
    }

  private:
    // Panel p has rows p `rows` .. of the root, as many steps as its last one is long.
    std::int64_t start(std::int64_t p) const {
        return std::int64_t{kernels_.rows} * kernels_.rows * p * (p + 1) / 2;
    }

    const ColumnKernels& kernels_ = column_table();
    const Window& window_;
    std::int64_t panels_, tile_;
    Numbers roots_;
};

}  // namespace

const ColumnKernels& column_table() {
    return CURVKERN_SELECT_ISA(, ::column_kernels());
}

bool gram(const Window& window, double* out, InterruptCheck interrupted) {
    const Gram work(window, 0, window.d);
    const std::int64_t m = window.count;
    if (m == 0) return true;
    // Sums of that many chunks take a thirtieth of G at most.
    constexpr std::int64_t chunks = 16;
    const bool finished = window.d >= chunks * 64 * m
                              ? gram_by_columns(work, chunks, m, out, interrupted)
                              : gram_by_panels(work, m, out, interrupted);
    for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < i; ++j) out[i * m + j] = out[j * m + i];
    }
    return finished;
}

bool whitened_squares(const Window& window, const double* root, double* out,
                      InterruptCheck interrupted) {
    const Squares work(window, root);
    const std::int64_t d = window.d, tile = work.tile();
    const std::int64_t chunk = std::clamp<std::int64_t>(divided(d, tile) / 64, 1, 64) * tile;
    return parallel_chunks(d, chunk, interrupted, [&](std::int64_t begin, std::int64_t end) {
        Squares::Scratch scratch(work);
        for (std::int64_t j = begin; j < end; j += tile) {
            work.compute(j, std::min(tile, end - j), scratch);
            std::copy_n(scratch.sums.data(), std::min(tile, end - j), out + j);
        }
    });
}

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
