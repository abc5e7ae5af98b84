// The rectifier and its gradient, over elements side by side. NaN is not <= 0, and so passes.
#include "number.h"

EXPORT void NAME(relu)(ptrdiff_t count, const T *x, T *y) {
  for (ptrdiff_t i = 0; i < count; ++i) y[i] = x[i] <= 0 ? 0 : x[i];
}

EXPORT void NAME(rectify)(ptrdiff_t count, T *y) {
  for (ptrdiff_t i = 0; i < count; ++i) y[i] = y[i] <= 0 ? 0 : y[i];
}

// y is the rectifier's result, or its argument.
EXPORT void NAME(relu_input_grad)(ptrdiff_t count, const T *dy, const T *y, T *dx) {
  for (ptrdiff_t i = 0; i < count; ++i) dx[i] = y[i] <= 0 ? 0 : dy[i];
}
