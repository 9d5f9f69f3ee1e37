// evaluate<F, Order, Code>(v, x, out): one function, one order of derivative, one region.
//
// Every branch here is taken at compile time; what runs is one formula per region.
#pragma once

#include "hyp0f1.hpp"
#include "iv_small.hpp"
#include "kv_small.hpp"
#include "matern.hpp"
#include "matern_debye.hpp"

namespace curvkern::bessel {
CURVKERN_PER_ISA {

template <Function F, int Order, int Code, class R>
CURVKERN_HD void evaluate(R v, R x, R* out) {
    if constexpr (is_matern(F)) {
        if constexpr (Code >= debye && Code < debye + Limits<R>::tiers) {
            evaluate_matern_debye<Order, Limits<R>::terms(Code - debye)>(v, x, out);
        } else {
            evaluate_matern<Order, Code>(v, x, out);
        }
    } else if constexpr (Code == kv_power) {
        if constexpr (is_k(F)) evaluate_k_power<F, Order>(v, x, out);
    } else if constexpr (Code == recessive) {
        if constexpr (has_recessive(F, Order)) evaluate_i_recessive(v, x, out);
    } else if constexpr (Code == debye_low) {
        if constexpr (is_hyp(F)) evaluate_hyp_low<Order>(v, x, out);
    } else if constexpr (Code == hyp_wide) {
        if constexpr (is_hyp(F)) evaluate_hyp_wide<Order>(v, x, out);
    } else if constexpr (Code == hankel) {
        if constexpr (has_fits(F, Order)) {
            if constexpr (Order == 0) {
                out[0] = hankel_value<is_k(F), is_scaled(F)>(v, x);
            } else {
                write_low_order_slopes<is_k(F), is_scaled(F)>(v, x, hankel_slopes(v, x), out);
            }
        }
    } else if constexpr (Code >= fitted) {
        constexpr int piece = Code - fitted;
        if constexpr (has_fits(F, Order) && piece < Limits<R>::pieces) {
            if constexpr (Order == 0 && is_k(F)) {
                out[0] = fitted_kv_value<piece, is_scaled(F)>(v, x);
            } else if constexpr (Order == 0) {
                out[0] = fitted_iv_value<piece, is_scaled(F)>(v, x);
            } else {
                write_low_order_slopes<is_k(F), is_scaled(F)>(v, x, fitted_slopes<piece>(v, x),
                                                              out);
            }
        }
    } else if constexpr (Code == careful) {
        evaluate_debye<F, Order, Careful<R>::terms, true>(v, x, out);
    } else if constexpr (Code >= debye && Code < debye + Limits<R>::tiers) {
        evaluate_debye<F, Order, Limits<R>::terms(Code - debye), false>(v, x, out);
    } else if constexpr (Code >= small_low && Code <= middle_high &&
                         is_reached(F, Order, Code)) {
        if constexpr (is_k(F)) {
            evaluate_k_small<F, Order, Code>(v, x, out);
        } else if constexpr (is_hyp(F)) {
            evaluate_hyp_small<Order, Code>(v, x, out);
        } else {
            evaluate_i_small<F, Order, Code>(v, x, out);
        }
    }
}

}  // namespace isa
}  // namespace curvkern::bessel
