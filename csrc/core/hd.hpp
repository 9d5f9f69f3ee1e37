// One macro for code that runs on the host and on the device, one namespace per instruction
// set.
//
// Headers under csrc/<family>/ are compiled several times: once per x86-64 level and once by
// nvcc. Everything they define lives in the inline namespace CURVKERN_ISA_NAMESPACE, so that a
// symbol built for AVX-512 can never be picked for the baseline by the linker.
#pragma once

// CURVKERN_HD is inlined into its caller. CURVKERN_SHARED is called: for the long formulas that
// several functions use, where a copy in each would cost minutes of compile time.
// CURVKERN_ELEMENTARY is inlined but for the fallback (x86-64 without AVX2: processors before
// 2013), which is compiled for size.
// nvcc sees the formulas as device code only: nothing on the host calls them from a .cu file,
// and tables then need no second copy.
#if defined(__CUDACC__)
#define CURVKERN_HD __device__ __forceinline__
#define CURVKERN_SHARED static __device__ __noinline__
#define CURVKERN_TABLE static __device__ constexpr
#define CURVKERN_UNROLL _Pragma("unroll")
#else
#define CURVKERN_HD inline __attribute__((always_inline))
#define CURVKERN_SHARED static __attribute__((noinline, noclone))
#define CURVKERN_TABLE inline constexpr
#define CURVKERN_UNROLL _Pragma("GCC unroll 32")
#endif

#if defined(__x86_64__) && !defined(__AVX2__) && !defined(__CUDACC__)
#define CURVKERN_FALLBACK 1
#define CURVKERN_ELEMENTARY CURVKERN_SHARED
#else
#define CURVKERN_ELEMENTARY CURVKERN_HD
#endif

#if !defined(CURVKERN_ISA_NAMESPACE)
#define CURVKERN_ISA_NAMESPACE generic
#endif
#define CURVKERN_JOIN_(a, b) a##b
#define CURVKERN_JOIN(a, b) CURVKERN_JOIN_(a, b)

// CURVKERN_PER_ISA { ... } inside a namespace: definitions of this build alone.
#define CURVKERN_PER_ISA inline namespace CURVKERN_JOIN(isa_, CURVKERN_ISA_NAMESPACE)
