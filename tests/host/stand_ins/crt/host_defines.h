// For CUDA 13's runtime wheel, which lacks this header (nvidia-cuda-crt has it): what its other headers need of it.
#pragma once
#undef __forceinline__
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define CUDARTAPI
#define __host__
#define __device__
#define __global__
#define __constant__
