// Parts of a vector: some of its lanes alone are read from memory, multiplied, or written. Included once for
// each number type, after vector.h.
#if defined(__AVX__)
#include <immintrin.h>
#endif

#define ints NAME(ints)
#define load_lanes NAME(load_lanes)
#define load_over NAME(load_over)
#define store_lanes NAME(store_lanes)
#define add_product NAME(add_product)
#define add_lanes NAME(add_lanes)

// Integers as wide as an element, to compare lanes and mask them.
#define integer_f32 int
#define integer_f64 long long
typedef NAME(integer) ints __attribute__((vector_size(VECTOR_BYTES)));

// A set of lanes.
#define lanes NAME(lanes)
#define among NAME(among)
#if defined(__AVX512F__)
typedef __mmask16 lanes;
INLINE lanes among(ptrdiff_t begin, ptrdiff_t end) { return (lanes)((1u << end) - (1u << begin)); }
#else
typedef ints lanes;  // all bits of a lane
INLINE lanes among(ptrdiff_t begin, ptrdiff_t end) {
  ints lane;
  UNROLL for (ptrdiff_t i = 0; i < VL; ++i) lane[i] = (NAME(integer))i;
  return (lane >= (NAME(integer))begin) & (lane < (NAME(integer))end);
}
#endif

// These elements; in the other lanes, those of `fill`.
INLINE vec load_over(vec fill, const T* from, lanes set) {
#if defined(__AVX512F__)
  return sizeof(T) == 4 ? (vec)_mm512_mask_loadu_ps((__m512)fill, set, from)
                        : (vec)_mm512_mask_loadu_pd((__m512d)fill, (__mmask8)set, from);
#elif defined(__AVX__)
  ints part = sizeof(T) == 4 ? (ints)_mm256_maskload_ps((const float*)from, (__m256i)set)
                             : (ints)_mm256_maskload_pd((const double*)from, (__m256i)set);
  return (vec)(part | (~set & (ints)fill));
#else
  for (ptrdiff_t i = 0; i < VL; ++i)
    if (set[i]) fill[i] = from[i];
  return fill;
#endif
}

INLINE vec load_lanes(const T* from, lanes set) { return load_over((vec){0}, from, set); }

INLINE void store_lanes(T* to, vec v, ptrdiff_t count) {
  if (count == VL) store(to, v);
  else store_part(to, v, count);
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
