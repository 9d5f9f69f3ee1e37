// The inner loops of M-FAC. Compiled once per instruction set; everything but kernels() has
// internal linkage.
#include "mfac/mfac.hpp"
#include "mfac/storage.hpp"

namespace curvkern::mfac {
namespace {

constexpr int rows = 4;

template <class S>
struct Rows {
    const S* row[rows];
    explicit Rows(const void* const* source) {
        for (int i = 0; i < rows; ++i) row[i] = static_cast<const S*>(source[i]);
    }
    // Fetches what is read next while the rows before are worked on: each row begins a page
    // that no hardware prefetcher has seen.
    CURVKERN_HD void fetch(std::int64_t j) const {
        constexpr std::int64_t line = 64 / sizeof(S);
        if (j % line < width) {
            for (int i = 0; i < rows; ++i) __builtin_prefetch(row[i] + j, 0, 2);
        }
    }
};

struct Spread {
    Lines lines;
    CURVKERN_HD void fetch(std::int64_t j) const { mfac::fetch(lines, j / width); }
};

// The last few numbers, and zeros to fill a register.
template <class S>
V load_part(const S* p, std::int64_t size) {
    double part[width] = {};
    for (std::int64_t j = 0; j < size; ++j) part[j] = widened(p[j]);
    return load(part);
}

// Four rows at a time: a register of v serves them all, and their sums are independent. After
// each run they are added up, so their order does not depend on K.
template <class S, int K, class Ahead>
void dot_block(const S* const* row, const Ahead& ahead, std::int64_t size, const double* v,
               std::int64_t stride, double* const* out) {
    std::int64_t j = 0;
    for (std::int64_t end = 0; end < size;) {
        end = end + run < size ? end + run : size;
        V sum[rows][K] = {};
        for (; j + width <= end; j += width) {
            ahead.fetch(j);
            V x[K];
            CURVKERN_UNROLL
            for (int r = 0; r < K; ++r) x[r] = load(v + r * stride + j);
            CURVKERN_UNROLL
            for (int i = 0; i < rows; ++i) {
                const V g = load(row[i] + j);
                CURVKERN_UNROLL
                for (int r = 0; r < K; ++r) sum[i][r] += g * x[r];
            }
        }
        // In registers, too: a loop over numbers is rounded as the compiler likes, for each K.
        if (j < end) {
            for (int i = 0; i < rows; ++i) {
                const V g = load_part(row[i] + j, end - j);
                for (int r = 0; r < K; ++r) {
                    sum[i][r] += g * load_part(v + r * stride + j, end - j);
                }
            }
        }
        j = end;
        CURVKERN_UNROLL
        for (int i = 0; i < rows; ++i) {
            CURVKERN_UNROLL
            for (int r = 0; r < K; ++r) out[i][r] += total(sum[i][r]);
        }
    }
}

// As many vectors at a time as K, and then fewer.
template <class S, int K, class Ahead>
void dot_groups(const Rows<S>& now, const Ahead& ahead, std::int64_t size, const double* v,
                std::int64_t stride, std::int64_t k, double* const* out) {
    double* target[rows] = {out[0], out[1], out[2], out[3]};
    for (; k >= K; k -= K, v += K * stride) {
        dot_block<S, K>(now.row, ahead, size, v, stride, target);
        for (double*& to : target) to += K;
    }
    if constexpr (K > 1) dot_groups<S, K - 1>(now, ahead, size, v, stride, k, target);
}

template <class S>
void dot(const void* const* row, std::int64_t size, const double* v, std::int64_t stride,
         std::int64_t k, double* const* out) {
    dot_groups<S, 2>(Rows<S>(row), Rows<S>(row + rows), size, v, stride, k, out);
}

// Sums that fill the registers beside those of K vectors and one of a row.
constexpr int together = sizeof(V) == 64 ? 6 : sizeof(V) == 32 ? 3 : 2;

void dot_many(const double* const* row, std::int64_t size, const double* v, std::int64_t stride,
              std::int64_t k, double* const* out, Lines ahead) {
    const void* from[rows] = {row[0], row[1], row[2], row[3]};
    dot_groups<double, together>(Rows<double>(from), Spread{ahead}, size, v, stride, k, out);
}

template <class S>
void add(const void* const* row, std::int64_t size, const double* coefficient, double* sum) {
    const Rows<S> now(row), ahead(row + rows);
    V c_of[rows];
    for (int i = 0; i < rows; ++i) c_of[i] = c<V>(coefficient[i]);
    std::int64_t j = 0;
    for (; j + width <= size; j += width) {
        ahead.fetch(j);
        V y = load(sum + j);
        for (int i = 0; i < rows; ++i) y += c_of[i] * load(now.row[i] + j);
        store(sum + j, y);
    }
    for (; j < size; ++j) {
        for (int i = 0; i < rows; ++i) sum[j] += coefficient[i] * widened(now.row[i][j]);
    }
}

template <class S>
void widen(const void* from, double* to, std::int64_t size) {
    const S* source = static_cast<const S*>(from);
    for (std::int64_t j = 0; j < size; ++j) to[j] = widened(source[j]);
}

template <class S>
void narrow(const double* from, void* to, std::int64_t size) {
    S* target = static_cast<S*>(to);
    for (std::int64_t j = 0; j < size; ++j) round_to(from[j], target + j);
}

template <class S, class T>
void finish(const double* sum, double alpha, const void* v, std::int64_t size, void* to) {
    const S* other = static_cast<const S*>(v);
    T* target = static_cast<T*>(to);
    if (other == nullptr) {
        for (std::int64_t j = 0; j < size; ++j) target[j] = static_cast<T>(sum[j]);
        return;
    }
    for (std::int64_t j = 0; j < size; ++j) {
        target[j] = static_cast<T>(sum[j] + alpha * static_cast<double>(other[j]));
    }
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
                                  together,
                                  dot_many,
                                  {add<double>, add<float>, add<Brain>},
                                  {widen<double>, widen<float>, widen<Brain>},
                                  {narrow<double>, narrow<float>, narrow<Brain>},
                                  {{finish<double, double>, finish<double, float>},
                                   {finish<float, double>, finish<float, float>}},
                                  axpy,
                                  inner,
                                  rotate};
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::mfac
