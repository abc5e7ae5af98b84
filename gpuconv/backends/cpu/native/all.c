// All kernels, for numbers of NUMBER_BYTES, which the compiler is told: a library of functions named NAME_f32, and
// one of functions named NAME_f64.
#include <stddef.h>
#include "convolution.h"
#include "pooling.h"
#if NUMBER_BYTES == 4
#define T float
#define NAME(x) x##_f32
#else
#define T double
#define NAME(x) x##_f64
#endif
#include "each.h"

EXPORT void NAME(vector_bytes)(ptrdiff_t *bytes) { *bytes = VECTOR_BYTES; }

#ifdef OWN_ENTRY
// What Windows calls in a library, where there is no C library to begin with it.
int DllMainCRTStartup(void) { return 1; }
#endif
