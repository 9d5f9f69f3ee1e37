// The loops of tangents.hpp. Compiled once per instruction set; everything but
// tangent_kernels() has internal linkage.
#include "core/math.hpp"
#include "hutchinson/storage.hpp"
#include "hutchinson/tangents.hpp"

namespace curvkern::hutchinson {
namespace {

template <class T>
CURVKERN_HD T entry(const void* vector, std::int64_t i, T otherwise) {
    return vector == nullptr ? otherwise : static_cast<const T*>(vector)[i];
}
template <class T>
CURVKERN_HD const T* at(const void* data, std::int64_t i) {
    return static_cast<const T*>(data) + i;
}
template <class T>
CURVKERN_HD T* at(void* data, std::int64_t i) {
    return static_cast<T*>(data) + i;
}

template <class T>
void channel_tangent(const Norm& a, std::int64_t c, void* y) {
    const T mean = *at<T>(a.mean, c), r = *at<T>(a.r, c), w = entry<T>(a.w, c, 1);
    double sum = 0, inner = 0;
    for (std::int64_t n = 0; n < a.outer; ++n) {
        const std::int64_t span = (n * a.groups + c) * a.inner;
        const T *x = at<T>(a.x, span), *xd = at<T>(a.xd, span);
        T s = 0, p = 0;
#pragma omp simd reduction(+ : s, p)
        for (std::int64_t i = 0; i < a.inner; ++i) {
            s += xd[i];
            p += (x[i] - mean) * xd[i];
        }
        sum += s;
        inner += p;
    }
    const double count = static_cast<double>(a.outer * a.inner);
    const double m = sum / count, q = r * inner / count;
    const T A = w * r;
    const T B = static_cast<T>(r * (entry<T>(a.wd, c, 0) - w * r * q));
    const T C = static_cast<T>(entry<T>(a.bd, c, 0) - w * r * m);
    for (std::int64_t n = 0; n < a.outer; ++n) {
        const std::int64_t span = (n * a.groups + c) * a.inner;
        const T *x = at<T>(a.x, span), *xd = at<T>(a.xd, span);
        T* to = at<T>(y, span);
#pragma omp simd
        for (std::int64_t i = 0; i < a.inner; ++i) {
            to[i] = A * xd[i] + (B * (x[i] - mean) + C);
        }
    }
}

template <class T>
void channel_reverse(const NormReverse& b, std::int64_t c) {
    const Norm& a = b.norm;
    const T mean = *at<T>(a.mean, c), r = *at<T>(a.r, c);
    const double w = entry<T>(a.w, c, 1), wd = entry<T>(a.wd, c, 0);
    double sd = 0, sxd = 0, sg = 0, sxg = 0, sgd = 0, sxgd = 0, sdg = 0;
    for (std::int64_t n = 0; n < a.outer; ++n) {
        const std::int64_t span = (n * a.groups + c) * a.inner;
        const T *x = at<T>(a.x, span), *xd = at<T>(a.xd, span);
        const T *g = at<T>(b.g, span), *gd = at<T>(b.gd, span);
        T d = 0, xd_ = 0, s = 0, xg = 0, e = 0, xe = 0, dg = 0;
#pragma omp simd reduction(+ : d, xd_, s, xg, e, xe, dg)
        for (std::int64_t i = 0; i < a.inner; ++i) {
            const T centred = x[i] - mean;
            d += xd[i];
            xd_ += centred * xd[i];
            s += g[i];
            xg += centred * g[i];
            e += gd[i];
            xe += centred * gd[i];
            dg += xd[i] * g[i];
        }
        sd += d;
        sxd += xd_;
        sg += s;
        sxg += xg;
        sgd += e;
        sxgd += xe;
        sdg += dg;
    }
    const double count = static_cast<double>(a.outer * a.inner);
    const double m = sd / count, q = r * sxd / count;
    const double ghd = r * (sdg - m * sg - q * r * sxg);  // sum of g xhatd
    T* sums = at<T>(b.sums, c);
    sums[0] = static_cast<T>(r * sxg);
    sums[a.groups] = static_cast<T>(r * sxgd + ghd);
    sums[2 * a.groups] = static_cast<T>(sg);
    sums[3 * a.groups] = static_cast<T>(sgd);
    const double u2 = w * r * sxg / count;
    const double k = (w * ghd + r * (w * sxgd + wd * sxg)) / count;
    const double A = r * w, B = -r * r * u2, C = -r * w * sg / count;
    const T Ag = static_cast<T>(A), Bx = static_cast<T>(B), C1 = static_cast<T>(C);
    const T g_ = static_cast<T>(r * wd - r * q * A), d_ = static_cast<T>(-r * r * u2);
    const T x_ = static_cast<T>(r * r * r * u2 * q - r * r * k - r * q * B);
    const T c_ = static_cast<T>(r * r * u2 * m - r * (w * sgd + wd * sg) / count - r * q * C);
    for (std::int64_t n = 0; n < a.outer; ++n) {
        const std::int64_t span = (n * a.groups + c) * a.inner;
        const T *x = at<T>(a.x, span), *xd = at<T>(a.xd, span);
        const T *g = at<T>(b.g, span), *gd = at<T>(b.gd, span);
        T* to = at<T>(b.xbard, span);
#pragma omp simd
        for (std::int64_t i = 0; i < a.inner; ++i) {
            to[i] = (Ag * gd[i] + g_ * g[i]) + (d_ * xd[i] + (x_ * (x[i] - mean) + c_));
        }
        if (b.xbar == nullptr) continue;
        T* bar = at<T>(b.xbar, span);
#pragma omp simd
        for (std::int64_t i = 0; i < a.inner; ++i) {
            bar[i] = Ag * g[i] + (Bx * (x[i] - mean) + C1);
        }
    }
}

// Weights that are not there cost a select, not a loop of their own.
template <class T>
struct Columns {
    const T *w, *wd, *bd;
    explicit Columns(const Norm& a)
        : w(static_cast<const T*>(a.w)),
          wd(static_cast<const T*>(a.wd)),
          bd(static_cast<const T*>(a.bd)) {}
};

template <class T>
void rows_tangent(const Norm& a, std::int64_t begin, std::int64_t end, void* y) {
    const Columns<T> of(a);
    const double count = static_cast<double>(a.inner);
    for (std::int64_t row = begin; row < end; ++row) {
        const T *x = at<T>(a.x, row * a.inner), *xd = at<T>(a.xd, row * a.inner);
        const T mean = *at<T>(a.mean, row), r = *at<T>(a.r, row);
        T* to = at<T>(y, row * a.inner);
        T s = 0, p = 0;
#pragma omp simd reduction(+ : s, p)
        for (std::int64_t i = 0; i < a.inner; ++i) {
            s += xd[i];
            p += (x[i] - mean) * xd[i];
        }
        const T m = static_cast<T>(s / count), q = static_cast<T>(r * p / count);
        const bool has_w = of.w != nullptr, has_wd = of.wd != nullptr,
                   has_bd = of.bd != nullptr;
#pragma omp simd
        for (std::int64_t i = 0; i < a.inner; ++i) {
            const T hat = r * (x[i] - mean), hatd = r * (xd[i] - m - hat * q);
            T value = has_w ? of.w[i] * hatd : hatd;
            if (has_wd) value += of.wd[i] * hat;
            if (has_bd) value += of.bd[i];
            to[i] = value;
        }
    }
}

template <class T>
void rows_reverse(const NormReverse& b, std::int64_t begin, std::int64_t end) {
    const Norm& a = b.norm;
    const Columns<T> of(a);
    const bool has_w = of.w != nullptr, has_wd = of.wd != nullptr;
    const double count = static_cast<double>(a.inner);
    T* sums = at<T>(b.sums, begin / row_chunk * 4 * a.inner);
    T *wbar = sums, *wbard = sums + a.inner, *bbar = wbard + a.inner, *bbard = bbar + a.inner;
    for (std::int64_t i = 0; i < 4 * a.inner; ++i) sums[i] = 0;
    for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t first = row * a.inner;
        const T *x = at<T>(a.x, first), *xd = at<T>(a.xd, first);
        const T *g = at<T>(b.g, first), *gd = at<T>(b.gd, first);
        const T mean = *at<T>(a.mean, row), r = *at<T>(a.r, row);
        T sd = 0, sxd = 0, su = 0, sxu = 0, sud = 0, sxud = 0, sdu = 0;
#pragma omp simd reduction(+ : sd, sxd, su, sxu, sud, sxud, sdu)
        for (std::int64_t i = 0; i < a.inner; ++i) {
            const T hat = r * (x[i] - mean);
            const T u = has_w ? of.w[i] * g[i] : g[i];
            T ud = has_w ? of.w[i] * gd[i] : gd[i];
            if (has_wd) ud += of.wd[i] * g[i];
            sd += xd[i];
            sxd += hat * xd[i];
            su += u;
            sxu += hat * u;
            sud += ud;
            sxud += hat * ud;
            sdu += xd[i] * u;
        }
        const T m = static_cast<T>(sd / count), q = static_cast<T>(sxd / count);
        const T u1 = static_cast<T>(su / count), u2 = static_cast<T>(sxu / count);
        const T ud1 = static_cast<T>(sud / count);
        const T k = static_cast<T>((r * (sdu - m * su - q * sxu) + sxud) / count);
        T* bar = b.xbar == nullptr ? nullptr : at<T>(b.xbar, first);
        T* bard = at<T>(b.xbard, first);
        const bool has_bar = bar != nullptr;
#pragma omp simd
        for (std::int64_t i = 0; i < a.inner; ++i) {
            const T hat = r * (x[i] - mean), hatd = r * (xd[i] - m - hat * q);
            const T u = has_w ? of.w[i] * g[i] : g[i];
            T ud = has_w ? of.w[i] * gd[i] : gd[i];
            if (has_wd) ud += of.wd[i] * g[i];
            const T value = r * (u - u1 - hat * u2);
            if (has_bar) bar[i] = value;
            bard[i] = r * ((ud - ud1 - hatd * u2 - hat * k) - q * value);
            wbar[i] += g[i] * hat;
            wbard[i] += gd[i] * hat + g[i] * hatd;
            bbar[i] += g[i];
            bbard[i] += gd[i];
        }
    }
}

template <class R>
void gelu_bend(const Bend& bend, std::int64_t begin, std::int64_t end) {
    using T = Scalar<R>;
    const T *x = at<T>(bend.x, begin), *t = at<T>(bend.t, begin), *g = at<T>(bend.g, begin);
    T* to = at<T>(bend.xbard, begin);
    for_registers<R>(end - begin, [&](std::int64_t i, std::int64_t count) {
        const R value = load<R>(x + i, count), square = value * value;
        const R density = exp(c<R>(-0.5) * square) * c<R>(0.39894228040143267794);
        const R both = load<R>(t + i, count) * load<R>(g + i, count);
        store(to + i, load<R>(to + i, count) + density * (c<R>(2) - square) * both, count);
    });
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const TangentKernels& tangent_kernels() {
    static const TangentKernels table = {{channel_tangent<float>, channel_tangent<double>},
                                         {channel_reverse<float>, channel_reverse<double>},
                                         {rows_tangent<float>, rows_tangent<double>},
                                         {rows_reverse<float>, rows_reverse<double>},
                                         {gelu_bend<VectorFloat>, gelu_bend<VectorDouble>}};
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::hutchinson
