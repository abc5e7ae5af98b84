// Every file once for float and once for double: one library, functions named NAME_f32 and NAME_f64.
#include <stddef.h>
#include "convolution.h"
#define T float
#define NAME(x) x##_f32
#include "each.h"
#undef T
#undef NAME
#define T double
#define NAME(x) x##_f64
#include "each.h"
