// The inner loops of M-FAC. Compiled once per instruction set; everything but kernels() has
// internal linkage.
#include "mfac/mfac.hpp"
#include "mfac/storage.hpp"

namespace curvkern::mfac {
namespace {

constexpr int rows = 4;

// The lines of the rows that come next, while those before are worked on: each row begins a
// page that no hardware prefetcher has seen.
template <class S>
CURVKERN_HD void prefetch(const S* const* ahead, std::int64_t j) {
    constexpr std::int64_t line = 64 / sizeof(S);
    if (j % line < width) {
        for (int i = 0; i < rows; ++i) __builtin_prefetch(ahead[i] + j, 0, 2);
    }
}

// Four rows at a time: a register of v serves them all, and their sums are independent.
template <class S, int K>
void dot_block(const S* const* row, const S* const* ahead, std::int64_t size, const double* v,
               std::int64_t stride, double* const* out) {
    V sum[rows][K] = {};
    std::int64_t j = 0;
    for (; j + width <= size; j += width) {
        prefetch(ahead, j);
        V x[K];
        for (int r = 0; r < K; ++r) x[r] = load(v + r * stride + j);
        for (int i = 0; i < rows; ++i) {
            const V g = load(row[i] + j);
            for (int r = 0; r < K; ++r) sum[i][r] += g * x[r];
        }
    }
    for (int i = 0; i < rows; ++i) {
        for (int r = 0; r < K; ++r) {
            double rest = total(sum[i][r]);
            for (std::int64_t at = j; at < size; ++at) {
                rest += one(row[i] + at) * v[r * stride + at];
            }
            out[i][r] += rest;
        }
    }
}

template <class S>
struct Rows {
    const S* row[rows];
    explicit Rows(const void* const* source) {
        for (int i = 0; i < rows; ++i) row[i] = static_cast<const S*>(source[i]);
    }
};

template <class S>
void dot(const void* const* row, std::int64_t size, const double* v, std::int64_t stride,
         std::int64_t k, double* const* out) {
    const Rows<S> now(row), ahead(row + rows);
    std::int64_t r = 0;
    double* target[rows];
    for (; r < k; r += k - r > 1 ? 2 : 1) {
        for (int i = 0; i < rows; ++i) target[i] = out[i] + r;
        if (k - r > 1) {
            dot_block<S, 2>(now.row, ahead.row, size, v + r * stride, stride, target);
        } else {
            dot_block<S, 1>(now.row, ahead.row, size, v + r * stride, stride, target);
        }
    }
}

template <class S>
void add(const void* const* row, std::int64_t size, const double* coefficient, double* sum) {
    const Rows<S> now(row), ahead(row + rows);
    V c_of[rows];
    for (int i = 0; i < rows; ++i) c_of[i] = c<V>(coefficient[i]);
    std::int64_t j = 0;
    for (; j + width <= size; j += width) {
        prefetch(ahead.row, j);
        V y = load(sum + j);
        for (int i = 0; i < rows; ++i) y += c_of[i] * load(now.row[i] + j);
        store(sum + j, y);
    }
    for (; j < size; ++j) {
        for (int i = 0; i < rows; ++i) sum[j] += coefficient[i] * one(now.row[i] + j);
    }
}

template <class S>
void widen(const void* from, double* to, std::int64_t size) {
    const S* source = static_cast<const S*>(from);
    for (std::int64_t j = 0; j < size; ++j) to[j] = one(source + j);
}

template <class S>
void narrow(const double* from, void* to, std::int64_t size) {
    S* target = static_cast<S*>(to);
    for (std::int64_t j = 0; j < size; ++j) round_to(from[j], target + j);
}

void axpy(double a, const double* x, double* y, std::int64_t size) {
    for (std::int64_t j = 0; j < size; ++j) y[j] += a * x[j];
}

double inner(const double* x, const double* y, std::int64_t size) {
    V sum = {}, other = {};
    std::int64_t j = 0;
    for (; j + 2 * width <= size; j += 2 * width) {
        sum += load(x + j) * load(y + j);
        other += load(x + j + width) * load(y + j + width);
    }
    double rest = total(sum + other);
    for (; j < size; ++j) rest += x[j] * y[j];
    return rest;
}

void rotate(double cosine, double sine, double* x, double* y, double* to, std::int64_t size) {
    const double inverse = 1 / cosine;
    for (std::int64_t j = 0; j < size; ++j) {
        const double turned = (x[j] + sine * y[j]) * inverse;
        y[j] = cosine * y[j] - sine * turned;
        to[j] = turned;
    }
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const Kernels& kernels() {
    static const Kernels table = {{dot<double>, dot<float>, dot<Brain>},
                                  {add<double>, add<float>, add<Brain>},
                                  {widen<double>, widen<float>, widen<Brain>},
                                  {narrow<double>, narrow<float>, narrow<Brain>},
                                  axpy,
                                  inner,
                                  rotate};
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::mfac
