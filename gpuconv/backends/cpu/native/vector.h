// What the compiler's vectors are on this machine. Included once for each number type: T, and NAME for what
// depends on it.
#include <stddef.h>

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
#define load NAME(load)
#define store NAME(store)
