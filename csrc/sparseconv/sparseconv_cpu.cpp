// The loops over a strip of pixels. Compiled once per instruction set; everything but kernels()
// has internal linkage.
#include "sparseconv/activation.hpp"

namespace curvkern::sparseconv {
namespace {

template <class T>
T* at(T* base, std::int64_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(base) + bytes);
}

// An address in a register of its own: with a sum of two registers as its operand, each
// multiply-add is two operations for the front end.
template <class T>
CURVKERN_HD void keep(T*& address) {
#if defined(__x86_64__)
    asm("" : "+r"(address));
#endif
}

template <class S>
void pack(const void* x, std::int64_t stride, std::int64_t rows, std::int64_t count,
          std::int64_t pitch, void* packed) {
    const S* from = static_cast<const S*>(x);
    auto* to = static_cast<Wide<S>*>(packed);
    // At the start of a register there is room for all of it.
    const bool aligned = reinterpret_cast<std::uintptr_t>(packed) % register_bytes == 0;
    for (std::int64_t k = 0; k < rows; ++k, from += stride, to = at(to, pitch)) {
        for_lanes<S>(count, [&](std::int64_t i, std::int64_t some) {
            __builtin_prefetch(from + count + i, 0, 2);  // of the next strip
            const Register<S> pixels = load(from + i, some);
            if (aligned) {
                store(to + i, pixels);
            } else {
                store(to + i, pixels, some);
            }
        });
    }
}

void expect_strip(const void* x, std::int64_t stride, std::int64_t rows, std::int64_t bytes) {
    const char* from = static_cast<const char*>(x);
    for (std::int64_t k = 0; k < rows; ++k, from += stride) {
        for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
    }
}

// V registers of z = W x to a row of the target; `last` lanes of the last of them.
template <class S, int V>
CURVKERN_HD void put(Register<S> (&z)[V], std::int64_t row, const Target& target,
                     std::int64_t last) {
    using R = Register<S>;
    constexpr int width = lanes_of<S>;
    if (target.bias != nullptr) {
        const R bias = spread(static_cast<const S*>(target.bias) + row);
        CURVKERN_UNROLL
        for (int v = 0; v < V; ++v) z[v] += bias;
    }
    if (target.residual != nullptr) {
        const S* residual =
            static_cast<const S*>(target.residual) + row * target.residual_row_size;
        CURVKERN_UNROLL
        for (int v = 0; v < V - 1; ++v) z[v] += load(residual + v * width);
        z[V - 1] += load(residual + (V - 1) * width, last);
    }
    if (target.activation != Activation::none) activate(z, target.activation);
    S* out = static_cast<S*>(target.out) + row * target.row_size;
    CURVKERN_UNROLL
    for (int v = 0; v < V - 1; ++v) store(out + v * width, z[v]);
    store(out + (V - 1) * width, z[V - 1], last);
}

// Rows that are written soon, in no order that hardware foresees: 24 to 144 channels of 56 x 56
// pixels, whose result had left L2, took 83 us in place of 130.
template <class S, int V>
CURVKERN_HD void expect(const Target& target, std::int64_t row, int rows) {
    const S* out = static_cast<const S*>(target.out) + row * target.row_size;
    for (int h = 0; h < rows; ++h, out += target.row_size) {
        CURVKERN_UNROLL
        for (int v = 0; v < V; ++v) __builtin_prefetch(out + v * lanes_of<S>, 1, 3);
    }
}

template <class T, int H, int V>
void multiply(const Piece& piece, const void* x, std::int64_t stride, void* sums,
              std::int64_t pitch, bool first, const Target* target) {
    using R = Register<T>;
    constexpr int width = lanes_of<T>;
    const std::int32_t* row = piece.row;
    const std::uint16_t* channel = piece.channel;
    const T* value = static_cast<const T*>(piece.value);
    const std::int64_t last = target == nullptr ? 0 : target->count - (V - 1) * width;
    for (const Run* run = piece.run; run != piece.run + piece.runs; ++run) {
        for (std::int32_t i = 0; i < run->rows; ++i, ++row) {
            R sum[H][V];
            if (target != nullptr) {
                expect<T, V>(*target, std::int64_t{row[rows_ahead]} * H, H);
            }
            R* kept = static_cast<R*>(at(sums, std::int64_t{*row} * H * pitch));
            CURVKERN_UNROLL
            for (int h = 0; h < H; ++h) {
                CURVKERN_UNROLL
                for (int v = 0; v < V; ++v) sum[h][v] = first ? R{} : at(kept, h * pitch)[v];
            }
            for (std::int32_t n = run->entries; n > 0; --n, ++channel, value += H) {
                const R* from = static_cast<const R*>(at(x, *channel * stride));
                keep(from);
                R weight[H];
                CURVKERN_UNROLL
                for (int h = 0; h < H; ++h) weight[h] = spread(value + h);
                CURVKERN_UNROLL
                for (int v = 0; v < V; ++v) {
                    const R pixels = from[v];
                    CURVKERN_UNROLL
                    for (int h = 0; h < H; ++h) sum[h][v] += weight[h] * pixels;
                }
            }
            CURVKERN_UNROLL
            for (int h = 0; h < H; ++h) {
                if (target != nullptr) {
                    put<T, V>(sum[h], std::int64_t{*row} * H + h, *target, last);
                } else {
                    CURVKERN_UNROLL
                    for (int v = 0; v < V; ++v) at(kept, h * pitch)[v] = sum[h][v];
                }
            }
        }
    }
}

template <class S>
void finish(const void* sums, std::int64_t pitch, std::int64_t rows, const Target& target) {
    const auto* from = static_cast<const Wide<S>*>(sums);
    for (std::int64_t row = 0; row < rows; ++row, from = at(from, pitch)) {
        Target part = target;
        for_lanes<S>(target.count, [&](std::int64_t i, std::int64_t some) {
            part.out = static_cast<S*>(target.out) + i;
            if (target.residual != nullptr) {
                part.residual = static_cast<const S*>(target.residual) + i;
            }
            Register<S> z[1] = {load(from + i, some)};
            put<S, 1>(z, row, part, some);
        });
    }
}

template <class S>
void gather(const void* from, const std::uint32_t* source, std::int64_t n, void* to) {
    for (std::int64_t i = 0; i < n; ++i) {
        static_cast<Wide<S>*>(to)[i] = widened(static_cast<const S*>(from)[source[i]]);
    }
}

template <class S>
void scatter(const void* from, const std::uint32_t* source, std::int64_t n, void* to) {
    for (std::int64_t i = 0; i < n; ++i) {
        static_cast<S*>(to)[source[i]] = narrowed<S>(static_cast<const Wide<S>*>(from)[i]);
    }
}

template <class R>
CURVKERN_HD Scalar<R> total(R x) {
    Scalar<R> part[Lanes<R>::width], sum = 0;
    __builtin_memcpy(part, &x, sizeof(x));
    for (int half = Lanes<R>::width / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) part[i] += part[i + half];
    }
    sum = part[0];
    return sum;
}

// sum[i] += the total of part[i]
template <class R>
CURVKERN_HD void add_totals(const R (&part)[4], Scalar<R>* sum) {
    for (int i = 0; i < 4; ++i) sum[i] += total(part[i]);
}
#if defined(__AVX2__)
// Four at a time take the shuffles of one.
CURVKERN_HD __m128 quarter(VectorFloat x) {
#if defined(__AVX512F__)
    const __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
#else
    const __m256 half = (__m256)x;
#endif
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
CURVKERN_HD void add_totals(const VectorFloat (&part)[4], float* sum) {
    __m128 a = quarter(part[0]), b = quarter(part[1]), d = quarter(part[2]),
           e = quarter(part[3]);
    _MM_TRANSPOSE4_PS(a, b, d, e);
    const __m128 all = _mm_add_ps(_mm_add_ps(a, b), _mm_add_ps(d, e));
    _mm_storeu_ps(sum, _mm_add_ps(_mm_loadu_ps(sum), all));
}
#endif

// V registers of a row of g against those of its channels, four channels at a time.
template <class T, int V>
void correlate_strip(const Piece& piece, const void* packed, const void* g, std::int64_t pitch,
                     T* sum) {
    using R = Register<T>;
    const std::int32_t* row = piece.row;
    const std::uint16_t* channel = piece.channel;
    for (const Run* run = piece.run; run != piece.run + piece.runs; ++run) {
        for (std::int32_t i = 0; i < run->rows; ++i, ++row) {
            const R* from = static_cast<const R*>(at(g, std::int64_t{*row} * pitch));
            R y[V];
            CURVKERN_UNROLL
            for (int v = 0; v < V; ++v) y[v] = from[v];
            std::int32_t n = run->entries;
            for (; n >= 4; n -= 4, channel += 4, sum += 4) {
                R part[4];
                CURVKERN_UNROLL
                for (int j = 0; j < 4; ++j) {
                    const R* x = static_cast<const R*>(at(packed, channel[j] * pitch));
                    part[j] = x[0] * y[0];
                    CURVKERN_UNROLL
                    for (int v = 1; v < V; ++v) part[j] += x[v] * y[v];
                }
                add_totals(part, sum);
            }
            for (; n > 0; --n, ++channel, ++sum) {
                const R* x = static_cast<const R*>(at(packed, *channel * pitch));
                R part = x[0] * y[0];
                CURVKERN_UNROLL
                for (int v = 1; v < V; ++v) part += x[v] * y[v];
                *sum += total(part);
            }
        }
    }
}

template <class T, int V = most_vectors>
void correlate(const Piece& piece, const void* packed, const void* g, std::int64_t pitch,
               int vectors, void* sums) {
    if (vectors == V)
        return correlate_strip<T, V>(piece, packed, g, pitch, static_cast<T*>(sums));
    if constexpr (V > 1) correlate<T, V - 1>(piece, packed, g, pitch, vectors, sums);
}

template <class T, int H, int V, class Table>
void fill(Table& table) {
    table[V - 1] = multiply<T, H, V>;
    if constexpr (V > 1) fill<T, H, V - 1>(table);
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const Kernels& kernels() {
    static const Kernels table = [] {
        Kernels k{};
        k.register_bytes = register_bytes;
        k.pack[0] = pack<double>;
        k.pack[1] = pack<float>;
        k.pack[2] = pack<Brain>;
        k.expect = expect_strip;
        fill<double, 1, most_vectors>(k.multiply[0][0]);
        fill<double, 2, most_vectors>(k.multiply[0][1]);
        fill<double, 4, most_vectors>(k.multiply[0][2]);
        fill<float, 1, most_vectors>(k.multiply[1][0]);
        fill<float, 2, most_vectors>(k.multiply[1][1]);
        fill<float, 4, most_vectors>(k.multiply[1][2]);
        k.finish[0] = finish<double>;
        k.finish[1] = finish<float>;
        k.finish[2] = finish<Brain>;
        k.gather[0] = gather<double>;
        k.gather[1] = gather<float>;
        k.gather[2] = gather<Brain>;
        k.scatter[0] = scatter<double>;
        k.scatter[1] = scatter<float>;
        k.scatter[2] = scatter<Brain>;
        k.correlate[0] = correlate<double>;
        k.correlate[1] = correlate<float>;
        return k;
    }();
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::sparseconv
