// Every second element, every fourth, and back: what strided access is made of. Included for each T.
#ifndef SHUFFLE
#define SHUFFLE(name, ...) \
  INLINE vec NAME(name)(vec a, vec b) { return __builtin_shufflevector(a, b, __VA_ARGS__); }
#endif
#if VECTOR_BYTES / NUMBER_BYTES == 16
SHUFFLE(even, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
SHUFFLE(odd, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
SHUFFLE(low, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
SHUFFLE(high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
SHUFFLE(next, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
#elif VECTOR_BYTES / NUMBER_BYTES == 8
SHUFFLE(even, 0, 2, 4, 6, 8, 10, 12, 14)
SHUFFLE(odd, 1, 3, 5, 7, 9, 11, 13, 15)
SHUFFLE(low, 0, 8, 1, 9, 2, 10, 3, 11)
SHUFFLE(high, 4, 12, 5, 13, 6, 14, 7, 15)
SHUFFLE(next, 1, 2, 3, 4, 5, 6, 7, 8)
#elif VECTOR_BYTES / NUMBER_BYTES == 4
SHUFFLE(even, 0, 2, 4, 6)
SHUFFLE(odd, 1, 3, 5, 7)
SHUFFLE(low, 0, 4, 1, 5)
SHUFFLE(high, 2, 6, 3, 7)
SHUFFLE(next, 1, 2, 3, 4)
#else
SHUFFLE(even, 0, 2)
SHUFFLE(odd, 1, 3)
SHUFFLE(low, 0, 2)
SHUFFLE(high, 1, 3)
SHUFFLE(next, 1, 2)
#endif
