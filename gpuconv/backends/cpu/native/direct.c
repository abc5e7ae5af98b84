// Convolution and its weight gradient from a flat copy of the padded image.
#include "number.h"
#include "convolution.h"
#include "flat.c"
#include "multiply.c"
#include "dots.c"
#include "outer.c"
#include "pack.c"
#include "sums.c"
