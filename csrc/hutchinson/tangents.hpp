// Tangents and gradients through normalization, and the bend of GELU.
//
// y = w xhat + b with xhat = r (x - mu), whose statistics are over a row (layer normalization;
// w and b by columns) or over a channel (batch normalization; w and b by channels). With means
// over what shares the statistics, m = mean(xd), q = mean(xhat xd), u = w g, ud = w gd + wd g:
//
//     xhatd = r (xd - m - xhat q),            yd = w xhatd + wd xhat + bd
//     xbar  = r (u - mean(u) - xhat mean(xhat u))
//     xbard = r (ud - mean(ud) - xhatd mean(xhat u) - xhat mean(xhatd u + xhat ud)) - r q xbar
//     wbar  = sum g xhat,  wbard = sum gd xhat + g xhatd,  bbar = sum g,  bbard = sum gd
//
// (d/d eps of torch's native_batch_norm_backward along x + eps xd, w + eps wd.) All sums of a
// row or channel are taken in one pass, what they give is applied in a second one that finds
// the row or channel in the cache: plain PyTorch passes over the tensors about thirty times.
#pragma once

#include <cstdint>

#include "core/isa.hpp"

namespace curvkern::hutchinson {

// Of one type, float or double. Vectors are null where there are none: w is 1, tangents are 0.
struct Norm {
    const void *x, *xd;
    const void *w, *wd, *bd;
    const void *mean, *r;
    std::int64_t outer, groups, inner;  // x is (outer, groups, inner)
    bool by_channel;                    // statistics of a group; else of a row, groups = 1
};
struct NormReverse {
    Norm norm;
    const void *g, *gd;
    void *xbar, *xbard;  // xbar may be null
    void* sums;          // wbar, wbard, bbar, bbard: of a channel, or for each chunk of rows
};

inline constexpr std::int64_t row_chunk = 64;  // rows that a thread takes, and a sum of them

void norm_tangent(const Norm& norm, bool is_double, void* y);
void norm_reverse(const NormReverse& norm, bool is_double);

// xbard += phi(x) (2 - x^2) t g, the second derivative of x Phi(x)
struct Bend {
    const void *x, *t, *g;
    void* xbard;
};
void gelu_bend(const Bend& bend, std::int64_t size, bool is_double);

struct TangentKernels {  // indexed by is_double
    void (*channel_tangent[2])(const Norm& norm, std::int64_t channel, void* y);
    void (*channel_reverse[2])(const NormReverse& norm, std::int64_t channel);
    void (*rows_tangent[2])(const Norm& norm, std::int64_t begin, std::int64_t end, void* y);
    void (*rows_reverse[2])(const NormReverse& norm, std::int64_t begin, std::int64_t end);
    void (*gelu_bend[2])(const Bend& bend, std::int64_t begin, std::int64_t end);
};

#define CURVKERN_DECLARE(isa)                \
    namespace isa {                          \
    const TangentKernels& tangent_kernels(); \
    }
CURVKERN_FOR_EACH_ISA(CURVKERN_DECLARE)
#undef CURVKERN_DECLARE

}  // namespace curvkern::hutchinson
