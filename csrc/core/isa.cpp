#include "core/isa.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace curvkern {
namespace {

#define CURVKERN_NAME(name) #name,
constexpr const char* names[] = {CURVKERN_FOR_EACH_ISA(CURVKERN_NAME)};
#undef CURVKERN_NAME

#if defined(__x86_64__)
// What -march=x86-64-v3 and -v4 may use; __builtin_cpu_supports also asks the operating system.
Isa detect() {
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("lzcnt");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("popcnt")) {
        throw std::runtime_error("curvkern needs a processor with SSE4.2 (x86-64-v2)");
    }
    return v4 ? Isa::v4 : v3 ? Isa::v3 : Isa::v2;
}
#else
Isa detect() {
    return Isa::baseline;
}
#endif

Isa choose() {
    const int limit = static_cast<int>(widest_isa());
    const char* forced = std::getenv("CURVKERN_ISA");
    if (forced == nullptr || *forced == '\0') return static_cast<Isa>(limit);
    std::string choices;
    for (int i = 0; i <= limit; ++i) {
        if (std::string(forced) == names[i]) return static_cast<Isa>(i);
        choices += (i == 0 ? "" : ", ") + std::string(names[i]);
    }
    throw std::invalid_argument("CURVKERN_ISA: expected one of " + choices +
                                " (what this processor supports), got '" + forced + "'");
}

}  // namespace

Isa isa() {
    static const Isa chosen = choose();
    return chosen;
}

const char* isa_name(Isa isa) {
    return names[static_cast<int>(isa)];
}

Isa widest_isa() {
    static const Isa widest = detect();
    return widest;
}

}  // namespace curvkern
