// Parts of a vector: some of its lanes alone are read from memory, multiplied, or written. Included once for
// each number type, after vector.h.
#if defined(__AVX__)
#include <immintrin.h>
#endif

#define ints NAME(ints)
#define load_lanes NAME(load_lanes)
#define store_lanes NAME(store_lanes)
#define add_product NAME(add_product)
#define add_lanes NAME(add_lanes)
#define evens NAME(evens)
#define interleave NAME(interleave)

// Integers as wide as an element, to compare lanes and mask them.
#define integer_f32 int
#define integer_f64 long long
typedef NAME(integer) ints __attribute__((vector_size(VECTOR_BYTES)));

#if VECTOR_BYTES == 64
#define EVENS_f32 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define LOWER_f32 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER_f32 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define LANES_f32 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define EVENS_f64 0, 2, 4, 6, 8, 10, 12, 14
#define LOWER_f64 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER_f64 4, 12, 5, 13, 6, 14, 7, 15
#define LANES_f64 0, 1, 2, 3, 4, 5, 6, 7
#elif VECTOR_BYTES == 32
#define EVENS_f32 0, 2, 4, 6, 8, 10, 12, 14
#define LOWER_f32 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER_f32 4, 12, 5, 13, 6, 14, 7, 15
#define LANES_f32 0, 1, 2, 3, 4, 5, 6, 7
#define EVENS_f64 0, 2, 4, 6
#define LOWER_f64 0, 4, 1, 5
#define UPPER_f64 2, 6, 3, 7
#define LANES_f64 0, 1, 2, 3
#else
#define EVENS_f32 0, 2, 4, 6
#define LOWER_f32 0, 4, 1, 5
#define UPPER_f32 2, 6, 3, 7
#define LANES_f32 0, 1, 2, 3
#define EVENS_f64 0, 2
#define LOWER_f64 0, 2
#define UPPER_f64 1, 3
#define LANES_f64 0, 1
#endif

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

INLINE vec evens(vec a, vec b) { return SHUFFLE(a, b, NAME(EVENS)); }
INLINE vec interleave(int upper, vec a, vec b) {
  return upper ? SHUFFLE(a, b, NAME(UPPER)) : SHUFFLE(a, b, NAME(LOWER));
}

// A set of lanes.
#define lanes NAME(lanes)
#define among NAME(among)
#if defined(__AVX512F__)
typedef __mmask16 lanes;
INLINE lanes among(ptrdiff_t begin, ptrdiff_t end) { return (lanes)((1u << end) - (1u << begin)); }
#else
typedef ints lanes;  // all bits of a lane
INLINE lanes among(ptrdiff_t begin, ptrdiff_t end) {
  const ints lane = {NAME(LANES)};
  return (lane >= (NAME(integer))begin) & (lane < (NAME(integer))end);
}
#endif

INLINE vec load_lanes(const T* from, lanes set) {
#if defined(__AVX512F__)
  return sizeof(T) == 4 ? (vec)_mm512_maskz_loadu_ps(set, from)
                        : (vec)_mm512_maskz_loadu_pd((__mmask8)set, from);
#elif defined(__AVX__)
  return sizeof(T) == 4 ? (vec)_mm256_maskload_ps((const float*)from, (__m256i)set)
                        : (vec)_mm256_maskload_pd((const double*)from, (__m256i)set);
#else
  vec part = {0};
  for (ptrdiff_t i = 0; i < VL; ++i)
    if (set[i]) part[i] = from[i];
  return part;
#endif
}

INLINE void store_lanes(T* to, vec v, ptrdiff_t count) {
  if (count == VL) {
    store(to, v);
    return;
  }
#if defined(__AVX512F__)
  if (sizeof(T) == 4)
    _mm512_mask_storeu_ps(to, among(0, count), (__m512)v);
  else
    _mm512_mask_storeu_pd(to, (__mmask8)among(0, count), (__m512d)v);
#else
  for (ptrdiff_t i = 0; i < count; ++i) to[i] = v[i];
#endif
}

// sum + a * b in these lanes, sum in the others: an infinity there stays out, though the other factor is 0.
INLINE vec add_product(vec sum, vec a, vec b, lanes set) {
#if defined(__AVX512F__)
  return sizeof(T) == 4 ? (vec)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)sum, set)
                        : (vec)_mm512_mask3_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum, (__mmask8)set);
#else
  return (vec)(((ints)(sum + a * b) & set) | ((ints)sum & ~set));
#endif
}

INLINE T add_lanes(vec v) {
#if defined(__AVX512F__)
  return sizeof(T) == 4 ? (T)_mm512_reduce_add_ps((__m512)v) : (T)_mm512_reduce_add_pd((__m512d)v);
#else
  UNROLL for (ptrdiff_t half = VL / 2; half; half /= 2) UNROLL for (ptrdiff_t i = 0; i < half; ++i) v[i] +=
      v[i + half];
  return v[0];
#endif
}
