// Every second element, every fourth, and back: what strided access is made of. Included for each T.
#ifndef SHUFFLE
#define SHUFFLE(name, ...) \
  INLINE vec NAME(name)(vec a, vec b) { return __builtin_shufflevector(a, b, __VA_ARGS__); }
#endif
#if VECTOR_BYTES / NUMBER_BYTES == 16
SHUFFLE(even, LOWER_16_1)
SHUFFLE(odd, UPPER_16_1)
SHUFFLE(low, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
SHUFFLE(high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
SHUFFLE(next, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
#elif VECTOR_BYTES / NUMBER_BYTES == 8
SHUFFLE(even, LOWER_8_1)
SHUFFLE(odd, UPPER_8_1)
SHUFFLE(low, 0, 8, 1, 9, 2, 10, 3, 11)
SHUFFLE(high, 4, 12, 5, 13, 6, 14, 7, 15)
SHUFFLE(next, 1, 2, 3, 4, 5, 6, 7, 8)
#elif VECTOR_BYTES / NUMBER_BYTES == 4
SHUFFLE(even, LOWER_4_1)
SHUFFLE(odd, UPPER_4_1)
SHUFFLE(low, 0, 4, 1, 5)
SHUFFLE(high, 2, 6, 3, 7)
SHUFFLE(next, 1, 2, 3, 4)
#else
SHUFFLE(even, LOWER_2_1)
SHUFFLE(odd, UPPER_2_1)
SHUFFLE(low, 0, 2)
SHUFFLE(high, 1, 3)
SHUFFLE(next, 1, 2)
#endif
