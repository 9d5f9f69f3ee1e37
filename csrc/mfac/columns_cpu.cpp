// The inner loops over panels. Compiled once per instruction set; everything but
// column_kernels() has internal linkage.
#include "mfac/columns.hpp"
#include "mfac/storage.hpp"

namespace curvkern::mfac {
namespace {

// A block of sums that fills the registers beside one step's numbers of b and one of a: 8 x 16
// of 32 registers with AVX-512, 4 x 12 of 16 with AVX2, 3 x 6 with SSE2.
constexpr int vectors = sizeof(V) == 64 ? 2 : 3;
constexpr int block_rows = sizeof(V) == 64 ? 8 : sizeof(V) == 32 ? 4 : 3;
constexpr int columns = vectors * width;
static_assert(columns % block_rows == 0);

struct Sums {
    V at[block_rows][vectors];
};

CURVKERN_HD Sums product(Sums sum, std::int64_t size, const double* a, std::int64_t a_stride,
                         const double* b, std::int64_t b_stride, Lines ahead = {}) {
    for (std::int64_t k = 0; k < size; ++k) {
        fetch(ahead, k);
        V y[vectors];
        CURVKERN_UNROLL
        for (int p = 0; p < vectors; ++p) y[p] = load(b + k * b_stride + p * width);
        CURVKERN_UNROLL
        for (int r = 0; r < block_rows; ++r) {
            const double x = a[k * a_stride + r];
            CURVKERN_UNROLL
            for (int p = 0; p < vectors; ++p) sum.at[r][p] += x * y[p];
        }
    }
    return sum;
}

// A block of a matrix with rows at a stride, (r_end, c_end) of it.
CURVKERN_HD Sums load_block(const double* from, std::int64_t stride, std::int64_t r_end,
                            std::int64_t c_end) {
    Sums sum = {};
    if (r_end == block_rows && c_end == columns) {
        CURVKERN_UNROLL
        for (int r = 0; r < block_rows; ++r) {
            CURVKERN_UNROLL
            for (int p = 0; p < vectors; ++p)
                sum.at[r][p] = load(from + r * stride + p * width);
        }
        return sum;
    }
    double flat[block_rows][columns] = {};
    for (std::int64_t r = 0; r < r_end; ++r) {
        for (std::int64_t j = 0; j < c_end; ++j) flat[r][j] = from[r * stride + j];
    }
    __builtin_memcpy(&sum, flat, sizeof(flat));
    return sum;
}

CURVKERN_HD void store_block(const Sums& sum, double* to, std::int64_t stride,
                             std::int64_t r_end, std::int64_t c_end) {
    if (r_end == block_rows && c_end == columns) {
        CURVKERN_UNROLL
        for (int r = 0; r < block_rows; ++r) {
            CURVKERN_UNROLL
            for (int p = 0; p < vectors; ++p) store(to + r * stride + p * width, sum.at[r][p]);
        }
        return;
    }
    double flat[block_rows][columns];
    __builtin_memcpy(flat, &sum, sizeof(flat));
    for (std::int64_t r = 0; r < r_end; ++r) {
        for (std::int64_t j = 0; j < c_end; ++j) to[r * stride + j] = flat[r][j];
    }
}

void multiply(std::int64_t size, const double* a, std::int64_t a_stride, const double* b,
              double* out, std::int64_t stride, std::int64_t r_end, std::int64_t c_end) {
    const Sums product_of = product({}, size, a, a_stride, b, columns);
    Sums sum = load_block(out, stride, r_end, c_end);
    CURVKERN_UNROLL
    for (int r = 0; r < block_rows; ++r) {
        CURVKERN_UNROLL
        for (int p = 0; p < vectors; ++p) sum.at[r][p] += product_of.at[r][p];
    }
    store_block(sum, out, stride, r_end, c_end);
}

void add_rows(std::int64_t size, const double* a, const double* b, double* out,
              std::int64_t stride, std::int64_t r_end, std::int64_t c_end, Lines ahead) {
    const Sums start = load_block(out, stride, r_end, c_end);
    store_block(product(start, size, a, block_rows, b, stride, ahead), out, stride, r_end,
                c_end);
}

void squares(std::int64_t size, const double* a, const double* b, double* out) {
    const Sums sum = product({}, size, a, block_rows, b, columns);
    CURVKERN_UNROLL
    for (int p = 0; p < vectors; ++p) {
        V y = load(out + p * width);
        CURVKERN_UNROLL
        for (int r = 0; r < block_rows; ++r) y += sum.at[r][p] * sum.at[r][p];
        store(out + p * width, y);
    }
}

// y[begin .. end) -= f x[begin .. end), from the register on in which it begins.
CURVKERN_HD void subtract(double f, const double* x, double* y, std::int64_t begin,
                          std::int64_t end) {
    std::int64_t j = begin / width * width;
    for (; j + width <= end; j += width) store(y + j, load(y + j) - f * load(x + j));
    for (; j < end; ++j) y[j] -= f * x[j];
}

void reduce(double* a, std::int64_t stride, double* root, std::int64_t root_stride,
            std::int64_t k, std::int64_t end, std::int64_t size, std::int64_t root_size) {
    const double pivot = a[k * stride + k], inverse = 1 / pivot;
    double *row = a + k * stride, *root_row = root + k * root_stride;
    for (std::int64_t j = k + 1; j < size; ++j) row[j] *= inverse;
    for (std::int64_t j = 0; j < root_size; ++j) root_row[j] *= inverse;
    for (std::int64_t i = k + 1; i < end; ++i) {
        subtract(row[i], row, a + i * stride, i, size);
        subtract(row[i], root_row, root + i * root_stride, 0, root_size);
    }
    for (std::int64_t j = 0; j < k; ++j) row[j] = 0;
}

// `width` registers become their transpose: bit after bit of the index of a register changes
// places with that of a lane.
template <int bit>
CURVKERN_HD void transpose_bits(V* x) {
    if constexpr (bit < width) {
        Bits<V> low, high;
        for (int lane = 0; lane < width; ++lane) {
            low[lane] = (lane & bit) == 0 ? lane : width + lane - bit;
            high[lane] = (lane & bit) == 0 ? lane + bit : width + lane;
        }
        CURVKERN_UNROLL
        for (int i = 0; i < width; ++i) {
            if ((i & bit) != 0) continue;
            const V first = x[i], second = x[i + bit];
            x[i] = __builtin_shuffle(first, second, low);
            x[i + bit] = __builtin_shuffle(first, second, high);
        }
        transpose_bits<2 * bit>(x);
    }
}

template <class S>
void pack_rows(const void* const* row, std::int64_t count, std::int64_t size, double* to) {
    for (std::int64_t first = 0; first < columns; first += width) {
        std::int64_t k = 0;
        if (first + width <= count) {
            for (; k + width <= size; k += width) {
                V x[width];
                CURVKERN_UNROLL
                for (int r = 0; r < width; ++r) {
                    x[r] = load(static_cast<const S*>(row[first + r]) + k);
                }
                transpose_bits<1>(x);
                CURVKERN_UNROLL
                for (int r = 0; r < width; ++r) store(to + (k + r) * columns + first, x[r]);
            }
        }
        for (; k < size; ++k) {
            for (std::int64_t r = first; r < first + width; ++r) {
                to[k * columns + r] =
                    r < count ? widened(static_cast<const S*>(row[r])[k]) : 0.0;
            }
        }
    }
}

template <class S>
void pack_columns(const void* const* row, std::int64_t count, std::int64_t size, double* to) {
    // Each row is a page of its own: what comes next of it is fetched along.
    constexpr std::int64_t line = 64 / sizeof(S);
    for (std::int64_t k = 0; k < count; ++k) {
        const S* source = static_cast<const S*>(row[k]);
        for (std::int64_t j = 0; j < size; j += line) __builtin_prefetch(source + size + j);
        double* target = to + k * columns;
        std::int64_t j = 0;
        for (; j + columns <= size; j += columns, target += count * columns) {
            CURVKERN_UNROLL
            for (int p = 0; p < vectors; ++p) {
                store(target + p * width, load(source + j + p * width));
            }
        }
        if (j == size) continue;
        for (int at = 0; at < columns; ++at) {
            target[at] = j + at < size ? widened(source[j + at]) : 0.0;
        }
    }
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const ColumnKernels& column_kernels() {
    static const ColumnKernels table = {
        block_rows,
        columns,
        {pack_rows<double>, pack_rows<float>, pack_rows<Brain>},
        {pack_columns<double>, pack_columns<float>, pack_columns<Brain>},
        multiply,
        add_rows,
        squares,
        reduce};
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::mfac
