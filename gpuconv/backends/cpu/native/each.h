#include "vector.h"
#include "flat.c"
#include "multiply.c"
#include "dots.c"
