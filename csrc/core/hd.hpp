// CURVKERN_HD marks a function that compiles for the host and, under nvcc, for the device.
#pragma once

#if defined(__CUDACC__)
#define CURVKERN_HD __host__ __device__
#else
#define CURVKERN_HD
#endif
