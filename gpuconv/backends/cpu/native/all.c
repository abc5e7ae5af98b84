// Every file once for float and once for double: one library, functions named NAME_f32 and NAME_f64.
#include <stddef.h>
#include "convolution.h"
#include "pooling.h"
#include "winograd.h"
#define T float
#define NUMBER_BYTES 4
#define NAME(x) x##_f32
#include "each.h"
#undef T
#undef NUMBER_BYTES
#undef NAME
#define T double
#define NUMBER_BYTES 8
#define NAME(x) x##_f64
#include "each.h"
