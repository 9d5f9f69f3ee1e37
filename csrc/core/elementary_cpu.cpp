#include "core/elementary.hpp"
#include "core/gamma.hpp"

namespace curvkern::elementary {
namespace {

#define CURVKERN_FUNCTION(Name, function) \
    struct Name {                         \
        template <class R>                \
        static CURVKERN_HD R of(R x) {    \
            return function(x);           \
        }                                 \
    };
CURVKERN_FUNCTION(Exp, exp)
CURVKERN_FUNCTION(Expm1, expm1)
CURVKERN_FUNCTION(Log, log)
CURVKERN_FUNCTION(Log1p, log1p)
CURVKERN_FUNCTION(Lgamma, lgamma)
#undef CURVKERN_FUNCTION

template <class F, class R, class T>
void run(const T* x, T* out, std::int64_t n) {
    constexpr int width = Lanes<R>::width;
    for (std::int64_t i = 0; i < n; i += width) {
        const auto bytes = sizeof(T) * (n - i < width ? n - i : width);
        R y = c<R>(1);
        __builtin_memcpy(&y, x + i, bytes);
        y = F::of(y);
        __builtin_memcpy(out + i, &y, bytes);
    }
}

template <class R, class T, class Table>
void fill(Table& table) {
    table[0] = run<Exp, R, T>;
    table[1] = run<Expm1, R, T>;
    table[2] = run<Log, R, T>;
    table[3] = run<Log1p, R, T>;
    table[4] = run<Lgamma, R, T>;
}

}  // namespace

namespace CURVKERN_ISA_NAMESPACE {
const Functions& functions() {
    static const Functions table = [] {
        Functions f{};
        fill<VectorDouble, double>(f.f64);
        fill<VectorFloat, float>(f.f32);
        return f;
    }();
    return table;
}
}  // namespace CURVKERN_ISA_NAMESPACE

}  // namespace curvkern::elementary
