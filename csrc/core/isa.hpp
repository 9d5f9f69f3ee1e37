// The instruction sets that kernels are compiled for, and the choice among them.
//
// Every kernel source is compiled once per entry of CURVKERN_FOR_EACH_ISA, in a namespace of
// that name (see csrc/cmake/simd.cmake). A family declares its table in each of them and picks
// one with CURVKERN_SELECT_ISA. Kernel sources include this header, so it includes none itself.
//
//     #define DECLARE(isa) namespace isa { const Kernels& kernels(); }
//     CURVKERN_FOR_EACH_ISA(DECLARE)
//     const Kernels& table = CURVKERN_SELECT_ISA(bessel::, ::kernels());
#pragma once

#if defined(__x86_64__)
#define CURVKERN_FOR_EACH_ISA(apply) apply(v2) apply(v3) apply(v4)
#define CURVKERN_SELECT_ISA(scope, member)                        \
    (::curvkern::isa() == ::curvkern::Isa::v4   ? scope v4 member \
     : ::curvkern::isa() == ::curvkern::Isa::v3 ? scope v3 member \
                                                : scope v2 member)
#else
#define CURVKERN_FOR_EACH_ISA(apply) apply(baseline)
#define CURVKERN_SELECT_ISA(scope, member) (::curvkern::isa(), scope baseline member)
#endif

namespace curvkern {

#define CURVKERN_ENUMERATOR(name) name,
enum class Isa { CURVKERN_FOR_EACH_ISA(CURVKERN_ENUMERATOR) };
#undef CURVKERN_ENUMERATOR

// The widest instruction set of this processor, or the one that the environment variable
// CURVKERN_ISA names. Throws std::invalid_argument listing the choices where that is not one of
// them. Decided at the first call.
Isa isa();

const char* isa_name(Isa isa);
Isa widest_isa();  // of this processor, which also supports all narrower ones

}  // namespace curvkern
