// One macro for code that runs on the host and on the device, one namespace per instruction set.
//
// Headers under csrc/<family>/ are compiled several times: once per x86-64 level and once by nvcc.
// Everything they define lives in the inline namespace CURVKERN_ISA_NAMESPACE, so that a symbol
// built for AVX-512 can never be picked for the baseline by the linker.
#pragma once

#if defined(__CUDACC__)
#define CURVKERN_HD __host__ __device__ __forceinline__
#else
#define CURVKERN_HD inline __attribute__((always_inline))
#endif

#if !defined(CURVKERN_ISA_NAMESPACE)
#define CURVKERN_ISA_NAMESPACE generic
#endif
#define CURVKERN_JOIN_(a, b) a##b
#define CURVKERN_JOIN(a, b) CURVKERN_JOIN_(a, b)

// CURVKERN_PER_ISA { ... } inside a namespace: definitions of this build alone.
#define CURVKERN_PER_ISA inline namespace CURVKERN_JOIN(isa_, CURVKERN_ISA_NAMESPACE)
