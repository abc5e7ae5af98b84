// What the compiler's vectors are on this machine. Included once for each number type: T, and NAME for what
// depends on it.
#include <stddef.h>

#include "lanes.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define REGISTERS 32
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define REGISTERS 16
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define REGISTERS 32
#else
#define VECTOR_BYTES 16
#define REGISTERS 16
#endif

#define VL (VECTOR_BYTES / (ptrdiff_t)sizeof(T))
#define vec NAME(vec)
// Loads and stores of it need no more alignment than an element has.
typedef T vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));

#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
INLINE ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
INLINE ptrdiff_t most(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
#endif

INLINE vec NAME(load)(const T *from) { return *(const vec *)from; }
INLINE void NAME(store)(T *to, vec v) { *(vec *)to = v; }
// The first `count` elements, and zeros; reads no others.
INLINE vec NAME(load_part)(const T *from, ptrdiff_t count) {
#if defined(__AVX512F__) && NUMBER_BYTES == 4
  return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
#elif defined(__AVX512F__)
  return (vec)_mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1), from);
#else
  T part[VECTOR_BYTES / sizeof(T)] = {0};
  for (ptrdiff_t i = 0; i < count; ++i) part[i] = from[i];
  return NAME(load)(part);
#endif
}
// Write the first `count` elements, and nothing else.
INLINE void NAME(store_part)(T *to, vec v, ptrdiff_t count) {
#if defined(__AVX512F__) && NUMBER_BYTES == 4
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)v);
#elif defined(__AVX512F__)
  _mm512_mask_storeu_pd(to, (__mmask8)((1u << count) - 1), (__m512d)v);
#else
  for (ptrdiff_t i = 0; i < count; ++i) to[i] = v[i];
#endif
}
#define store_part NAME(store_part)
#define load NAME(load)
#define load_part NAME(load_part)
#define store NAME(store)

// Do STEP(lanes, h) for a vector's lanes and h = lanes / 2 ... 1.
#undef STEPS
#if VECTOR_BYTES / NUMBER_BYTES == 16
#define STEPS STEP(16, 8) STEP(16, 4) STEP(16, 2) STEP(16, 1)
#elif VECTOR_BYTES / NUMBER_BYTES == 8
#define STEPS STEP(8, 4) STEP(8, 2) STEP(8, 1)
#elif VECTOR_BYTES / NUMBER_BYTES == 4
#define STEPS STEP(4, 2) STEP(4, 1)
#else
#define STEPS STEP(2, 1)
#endif

// Leave in v[0], v[1] ... the sums over the lanes of each of `n` vectors, VL sums a vector. n is a constant,
// and v has room for n rounded up to a multiple of VL.
INLINE void NAME(sum_lanes)(vec *v, int n) {
  ptrdiff_t count = (n + VL - 1) / VL * VL;
  UNROLL for (ptrdiff_t i = n; i < count; ++i) v[i] = (vec){0};
  // Two vectors become one: the lower half of each group of 2h lanes added to the upper half.
#define STEP(n, h)                                                                         \
  count /= 2;                                                                              \
  UNROLL for (ptrdiff_t i = 0; i < count; ++i) v[i] =                                      \
      __builtin_shufflevector(v[2 * i], v[2 * i + 1], LOWER_##n##_##h) +                   \
      __builtin_shufflevector(v[2 * i], v[2 * i + 1], UPPER_##n##_##h);
  STEPS
#undef STEP
}

// Transpose VL vectors: lane j of v[i] and lane i of v[j] change places.
INLINE void NAME(transpose)(vec *v) {
  // Blocks of h by h lanes change places across the diagonal of blocks of 2h by 2h.
#define STEP(n, h)                                                                         \
  UNROLL for (int i = 0; i < n; ++i) if (!(i & h)) {                                       \
    vec a = v[i], b = v[i + h];                                                            \
    v[i] = __builtin_shufflevector(a, b, EVEN_##n##_##h);                                  \
    v[i + h] = __builtin_shufflevector(a, b, ODD_##n##_##h);                               \
  }
  STEPS
#undef STEP
}

// Write `rows` rows of `to`, each `count` long, of as many columns of `from`: both at most VL.
INLINE void NAME(turn)(T *to, ptrdiff_t to_step, const T *from, ptrdiff_t from_step, ptrdiff_t count,
                       ptrdiff_t rows) {
  vec v[VECTOR_BYTES / sizeof(T)];  // in registers: every index is a constant
  if (count == VL && rows == VL) {
    UNROLL for (ptrdiff_t i = 0; i < VL; ++i) v[i] = load(from + i * from_step);
    NAME(transpose)(v);
    UNROLL for (ptrdiff_t i = 0; i < VL; ++i) store(to + i * to_step, v[i]);
  } else {
    UNROLL for (ptrdiff_t i = 0; i < VL; ++i)
        v[i] = i < count ? load_part(from + i * from_step, rows) : (vec){0};
    NAME(transpose)(v);
    UNROLL for (ptrdiff_t i = 0; i < VL; ++i) if (i < rows) store_part(to + i * to_step, v[i], count);
  }
}
