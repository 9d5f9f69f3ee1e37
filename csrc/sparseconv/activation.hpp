// The activations of an epilogue, on registers. NaN stays NaN.
//
//     relu6 = min(max(z, 0), 6),  silu = z / (1 + e^-z),  hardswish = z min(max(z + 3, 0), 6) /
//     6
#pragma once

#include "sparseconv/sparseconv.hpp"
#include "sparseconv/vectors.hpp"

namespace curvkern::sparseconv {
CURVKERN_PER_ISA {

template <class R>
CURVKERN_HD R clamp(R z, double low, double high) {
    z = select(z < c<R>(low), c<R>(low), z);
    return select(z > c<R>(high), c<R>(high), z);
}

// Those that take an exponential are called: a copy in each kernel would be most of its code.
template <class R>
CURVKERN_SHARED void silu(R* z, int count) {
    for (int i = 0; i < count; ++i) z[i] = z[i] / (c<R>(1) + exp(-z[i]));
}

template <class R, int count>
CURVKERN_HD void activate(R (&z)[count], Activation activation) {
    switch (activation) {
        case Activation::none:
            break;
        case Activation::relu:
            CURVKERN_UNROLL
            for (int i = 0; i < count; ++i) z[i] = select(z[i] < c<R>(0), c<R>(0), z[i]);
            break;
        case Activation::relu6:
            CURVKERN_UNROLL
            for (int i = 0; i < count; ++i) z[i] = clamp(z[i], 0, 6);
            break;
        case Activation::silu: {
            R copy[count];  // z itself stays in registers
            CURVKERN_UNROLL
            for (int i = 0; i < count; ++i) copy[i] = z[i];
            silu(copy, count);
            CURVKERN_UNROLL
            for (int i = 0; i < count; ++i) z[i] = copy[i];
            break;
        }
        case Activation::hardswish:
            CURVKERN_UNROLL
            for (int i = 0; i < count; ++i) {
                z[i] = z[i] * clamp(z[i] + c<R>(3), 0, 6) * c<R>(1.0 / 6);
            }
    }
}

}  // namespace isa
}  // namespace curvkern::sparseconv
