// What one element does in a step, for host and device: R is a register or a number.
//
// AdaHessian's formula stands in hutchinson.hpp. The others, with D = z Hz averaged over
// probes:
//
//   Sophia   m = b1 m + (1 - b1) g,   h = b2 h + (1 - b2) D where D is new,
//            p -= lr wd p + lr clip(m / max(gamma h, eps), -1, 1); a NaN quotient is 0
//            (Liu, Li, Hall, Liang, Ma, ICLR 2024, algorithm 3)
//   metric   A = b2 A + (1 - b2) D,   B = max(|A|, alpha)
//   descent  p -= rate g / B
//            (OASIS: Jahani, Rusakov, Shi, Richtarik, Mahoney, Takac, ICLR 2022, algorithm 1;
//            SANIA: Abdukhakimov, Xiang, Kamzolov, Gower, Takac, arXiv:2312.17369)
#pragma once

#include "hutchinson/hutchinson.hpp"
#include "hutchinson/power.hpp"

namespace curvkern::hutchinson {
CURVKERN_PER_ISA {

// `Plain`: k = 1 and a quotient.
template <class R>
struct AdaHessianRule {
    R beta1, rest1, beta2, rest2, decay, rate, root, eps, scale, inverse_bias, weight;
    double exponent;
    bool has_atan2;

    CURVKERN_HD AdaHessianRule(const Factors& f, double D_scale)
        : beta1(c<R>(f.beta1)),
          rest1(c<R>(f.rest1)),
          beta2(c<R>(f.beta2)),
          rest2(c<R>(f.rest2)),
          decay(c<R>(f.decay)),
          rate(c<R>(f.rate)),
          root(c<R>(f.root)),
          eps(c<R>(f.eps)),
          scale(c<R>(f.scale)),
          inverse_bias(c<R>(f.inverse_bias)),
          weight(c<R>(D_scale)),
          exponent(f.power),
          has_atan2(f.atan2) {}

    CURVKERN_HD R first(R m, R g) const { return beta1 * m + rest1 * (g * scale); }
    CURVKERN_HD R second(R v, R D) const {
        const R d = D * weight;
        return beta2 * v + rest2 * (d * d);
    }
    template <bool Plain>
    CURVKERN_HD R moved(R p, R m, R v) const {
        R base = sqrt(v) * root, direction;
        if constexpr (Plain) {
            direction = m / (base + eps);
        } else {
            if (exponent == 0.5) {
                base = sqrt(base);
            } else if (exponent != 1) {
                base = exponent == 0 ? c<R>(1) : power(base, exponent);
            }
            direction = has_atan2 ? atan2_positive(m * inverse_bias, base) : m / (base + eps);
        }
        return p * decay - rate * direction;
    }
};

template <class R>
struct SophiaRule {
    R beta1, rest1, beta2, rest2, decay, rate, eps, gamma, scale, weight;

    CURVKERN_HD SophiaRule(const Factors& f)
        : beta1(c<R>(f.beta1)),
          rest1(c<R>(f.rest1)),
          beta2(c<R>(f.beta2)),
          rest2(c<R>(f.rest2)),
          decay(c<R>(f.decay)),
          rate(c<R>(f.rate)),
          eps(c<R>(f.eps)),
          gamma(c<R>(f.gamma)),
          scale(c<R>(f.scale)),
          weight(c<R>(f.weight)) {}

    CURVKERN_HD R first(R m, R g) const { return beta1 * m + rest1 * (g * scale); }
    CURVKERN_HD R curvature(R h, R D) const { return beta2 * h + rest2 * (D * weight); }
    CURVKERN_HD R moved(R p, R m, R h) const {
        const R one = c<R>(1), quotient = m / max(gamma * h, eps);
        const R step = select(quotient == quotient, quotient, c<R>(0));
        return p * decay - rate * min(max(step, -one), one);
    }
};

template <class R>
struct MetricRule {
    R beta2, rest2, alpha, rate, scale, weight;

    CURVKERN_HD MetricRule(const Factors& f)
        : beta2(c<R>(f.beta2)),
          rest2(c<R>(f.rest2)),
          alpha(c<R>(f.alpha)),
          rate(c<R>(f.rate)),
          scale(c<R>(f.scale)),
          weight(c<R>(f.weight)) {}

    CURVKERN_HD R gradient(R g) const { return g * scale; }
    CURVKERN_HD R average(R A, R D) const { return beta2 * A + rest2 * (D * weight); }
    CURVKERN_HD R metric(R A) const { return max(abs(A), alpha); }
    CURVKERN_HD R moved(R p, R g, R B) const { return p - rate * g / B; }
};

}  // namespace isa
}  // namespace curvkern::hutchinson
