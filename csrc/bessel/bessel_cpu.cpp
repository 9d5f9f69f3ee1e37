#include "bessel/bessel.hpp"

namespace curvkern::bessel::CURVKERN_ISA_NAMESPACE {
namespace {

template <class T>
void value(const T* v, const T* x, T* const* out, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) out[0][i] = v[i] * v[i] * x[i] + 2 * x[i];
}

template <class T>
void grad(const T* v, const T* x, T* const* out, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) {
        out[0][i] = 2 * v[i] * x[i];
        out[1][i] = v[i] * v[i] + 2;
    }
}

template <class T>
void hess(const T* v, const T* x, T* const* out, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) {
        out[0][i] = 2 * x[i];
        out[1][i] = 2 * v[i];
        out[2][i] = 0;
    }
}

#define ROW(T) {value<T>, grad<T>, hess<T>}
#define TABLE(T) {ROW(T), ROW(T), ROW(T), ROW(T), ROW(T), ROW(T), ROW(T)}
const Kernels table = {TABLE(double), TABLE(float)};

}  // namespace

const Kernels& kernels() { return table; }

}  // namespace curvkern::bessel::CURVKERN_ISA_NAMESPACE
