// What the compiler's vectors are on this machine. Included once for each number type: T, and NAME for what
// depends on it.
#include <stddef.h>
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
#define load NAME(load)
#define load_part NAME(load_part)
#define store NAME(store)

// Two vectors become one: of groups of 2h lanes, the lower h added to the upper h, those of `a` before `b`'s.
// After all steps from VL / 2 to 1, VL vectors have become one with a sum in each lane, in their order.
#ifndef FOLDS
#define FOLDS
#define LANES_16_8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define LANES_16_4 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define LANES_16_2 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29
#define LANES_16_1 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define LANES_8_4 0, 1, 2, 3, 8, 9, 10, 11
#define LANES_8_2 0, 1, 4, 5, 8, 9, 12, 13
#define LANES_8_1 0, 2, 4, 6, 8, 10, 12, 14
#define LANES_4_2 0, 1, 4, 5
#define LANES_4_1 0, 2, 4, 6
#define LANES_2_1 0, 2
#define UPPER_16_8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define UPPER_16_4 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#define UPPER_16_2 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31
#define UPPER_16_1 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define UPPER_8_4 4, 5, 6, 7, 12, 13, 14, 15
#define UPPER_8_2 2, 3, 6, 7, 10, 11, 14, 15
#define UPPER_8_1 1, 3, 5, 7, 9, 11, 13, 15
#define UPPER_4_2 2, 3, 6, 7
#define UPPER_4_1 1, 3, 5, 7
#define UPPER_2_1 1, 3
#define FOLD(a, b, n, h) \
  (__builtin_shufflevector(a, b, LANES_##n##_##h) + __builtin_shufflevector(a, b, UPPER_##n##_##h))
#endif

// Leave in v[0], v[1] ... the sums over the lanes of each of `n` vectors, VL sums a vector. n is a constant,
// and v has room for n rounded up to a multiple of VL.
INLINE void NAME(sum_lanes)(vec *v, int n) {
  ptrdiff_t count = (n + VL - 1) / VL * VL;
  UNROLL for (ptrdiff_t i = n; i < count; ++i) v[i] = (vec){0};
#define STEP(lanes, h)                                                                       \
  count /= 2;                                                                                \
  UNROLL for (ptrdiff_t i = 0; i < count; ++i) v[i] = FOLD(v[2 * i], v[2 * i + 1], lanes, h);
#if VECTOR_BYTES / NUMBER_BYTES == 16
  STEP(16, 8) STEP(16, 4) STEP(16, 2) STEP(16, 1)
#elif VECTOR_BYTES / NUMBER_BYTES == 8
  STEP(8, 4) STEP(8, 2) STEP(8, 1)
#elif VECTOR_BYTES / NUMBER_BYTES == 4
  STEP(4, 2) STEP(4, 1)
#else
  STEP(2, 1)
#endif
#undef STEP
}
