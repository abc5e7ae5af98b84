// What each part (direct.c, winograd.c, depthwise.c, pooling.c, relu.c) begins with. A library is of one part, for
// numbers of NUMBER_BYTES, which the compiler is told; its functions are named NAME_f32 or NAME_f64.
#pragma once
#include <stddef.h>
#if NUMBER_BYTES == 4
#define T float
#define NAME(x) x##_f32
#else
#define T double
#define NAME(x) x##_f64
#endif
#include "vector.h"
#include "jobs.h"

EXPORT void NAME(vector_bytes)(ptrdiff_t *bytes) { *bytes = VECTOR_BYTES; }

#ifdef OWN_ENTRY
// What Windows calls in a library, where there is no C library to begin with it.
int DllMainCRTStartup(void) { return 1; }
#endif
