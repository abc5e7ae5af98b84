// Pieces of all poolings: a maximum with its tap, and masks of 1, 4 or 8 bytes an element.
//
// A maximum is taken tap by tap in row-major order, from -infinity at the window's first tap: a tap wins by
// being greater, or NaN where there was a number, so that of equals the first stays.

#define INT NAME(number)
typedef __typeof__(((vec){0} == (vec){0})[0]) INT;  // as wide as T: what comparisons of vectors give
#define ivec NAME(ivec)
typedef INT ivec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));
#define bytes NAME(bytes)
typedef unsigned char bytes __attribute__((vector_size(VECTOR_BYTES / sizeof(T)), aligned(1), may_alias));
#define words NAME(words)
typedef int words __attribute__((vector_size(4 * VECTOR_BYTES / sizeof(T)), aligned(4), may_alias));
#define longs NAME(longs)
typedef long long longs __attribute__((vector_size(8 * VECTOR_BYTES / sizeof(T)), aligned(8), may_alias));

#define LOWEST ((T)-__builtin_inf())
#define MANY 64  // taps that are summed one by one; sums of sums stay exact for large windows

INLINE vec NAME(choose)(ivec take, vec a, vec b) { return (vec)((take & (ivec)a) | (~take & (ivec)b)); }

INLINE void NAME(take)(int op, vec v, ivec tap, vec *best, ivec *at) {
  ivec takes = (ivec)(~(v <= *best) & (*best == *best));
  *best = NAME(choose)(takes, v, *best);
  if (op == MAX_AND_MASK) *at = (takes & tap) | (~takes & *at);
}

INLINE void NAME(store_mask)(const Pooling *s, ivec at, char *mask) {
  if (s->mask_bytes == 1) *(bytes *)mask = __builtin_convertvector(at, bytes);
  else if (s->mask_bytes == 4) *(words *)mask = __builtin_convertvector(at, words);
  else *(longs *)mask = __builtin_convertvector(at, longs);
}

// Write the first `count` bytes, and nothing else: two halves, quarters .. that may overlap.
INLINE void NAME(store_bytes)(char *to, bytes v, ptrdiff_t count) {
  char part[16];
  *(bytes *)part = v;
#define PARTS(number)                                                                      \
  if (count >= (ptrdiff_t)sizeof(number)) {                                                \
    typedef number some __attribute__((aligned(1), may_alias));                            \
    *(some *)to = *(some *)part;                                                           \
    to += count - sizeof(number);                                                          \
    *(some *)to = *(some *)(part + count - sizeof(number));                                \
    return;                                                                                \
  }
  if (count == VL) *(bytes *)to = v;
  else PARTS(long long) else PARTS(int) else PARTS(short) else *to = *part;
#undef PARTS
}

// The first `count` bytes, and zeros; reads no others.
INLINE bytes NAME(load_bytes)(const char *from, ptrdiff_t count) {
  if (count == VL) return *(const bytes *)from;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  __m128i part = _mm_maskz_loadu_epi8((__mmask16)((1u << count) - 1), from);
#else
  char part[16] = {0};
  for (ptrdiff_t i = 0; i < count; ++i) part[i] = from[i];
#endif
  return *(bytes *)&part;
}

INLINE ivec NAME(load_mask)(ptrdiff_t bytes_each, const char *mask) {
  if (bytes_each == 1) return __builtin_convertvector(*(const bytes *)mask, ivec);
  if (bytes_each == 4) return __builtin_convertvector(*(const words *)mask, ivec);
  return __builtin_convertvector(*(const longs *)mask, ivec);
}

INLINE void NAME(store_one)(const Pooling *s, INT at, char *mask) {
  if (s->mask_bytes == 1) *(unsigned char *)mask = (unsigned char)at;
  else if (s->mask_bytes == 4) *(int *)mask = (int)at;
  else *(long long *)mask = at;
}

INLINE long long NAME(load_one)(const Pooling *s, const char *mask) {
  if (s->mask_bytes == 1) return *(const unsigned char *)mask;
  if (s->mask_bytes == 4) return *(const int *)mask;
  return *(const long long *)mask;
}
