// Sums over places, for the gradient by the bias. Blocks of numbers are added up as T, the blocks' sums as double, so
// that no sum gets long.
#define SUM_VECTORS 4 // at once, as an addition's result is there some cycles later
#define SUM_BLOCK 4096

// The sum of the places of each plane; planes are `step` apart.
EXPORT void NAME(sum_planes)(ptrdiff_t planes, ptrdiff_t places, const T *x, ptrdiff_t step, double *sums) {
  for (ptrdiff_t p = 0; p < planes; ++p, x += step) {
    double total = 0;
    for (ptrdiff_t begin = 0; begin < places; begin += SUM_BLOCK) {
      ptrdiff_t end = least(places, begin + SUM_BLOCK), i = begin;
      vec sum[SUM_VECTORS] = {{0}};
      for (; i + SUM_VECTORS * VL <= end; i += SUM_VECTORS * VL)
        UNROLL for (int v = 0; v < SUM_VECTORS; ++v) sum[v] += NAME(load)(x + i + v * VL);
      for (; i < end; i += VL) sum[0] += NAME(load_part)(x + i, least(VL, end - i));
      UNROLL for (int v = 1; v < SUM_VECTORS; ++v) sum[0] += sum[v];
      UNROLL for (ptrdiff_t lane = 0; lane < VL; ++lane) total += (double)sum[0][lane];
    }
    sums[p] = total;
  }
}

// The sum of the places of each channel; channels lie side by side, places are `step` apart.
EXPORT void NAME(sum_channels)(ptrdiff_t channels, ptrdiff_t places, const T *x, ptrdiff_t step, double *sums) {
  for (ptrdiff_t c = 0; c < channels; c += VL) {
    ptrdiff_t count = least(VL, channels - c);
    double total[VECTOR_BYTES / sizeof(T)] = {0};
    for (ptrdiff_t begin = 0; begin < places; begin += SUM_BLOCK / 64) {
      const T *from = x + c + begin * step;
      ptrdiff_t end = least(places - begin, SUM_BLOCK / 64), i = 0;
      vec sum[SUM_VECTORS] = {{0}};
      for (; i + SUM_VECTORS <= end; i += SUM_VECTORS)
        UNROLL for (int v = 0; v < SUM_VECTORS; ++v) sum[v] += NAME(load_part)(from + (i + v) * step, count);
      for (; i < end; ++i) sum[0] += NAME(load_part)(from + i * step, count);
      UNROLL for (int v = 1; v < SUM_VECTORS; ++v) sum[0] += sum[v];
      for (ptrdiff_t lane = 0; lane < count; ++lane) total[lane] += (double)sum[0][lane];
    }
    for (ptrdiff_t lane = 0; lane < count; ++lane) sums[c + lane] = total[lane];
  }
}
