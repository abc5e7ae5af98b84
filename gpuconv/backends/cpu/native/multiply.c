// Convolution as a product with shifted runs of the flat image: no columns are ever written.
//
//     y[k, p] = b[k] + sum over c, t of  w[k, c, t] * flat[phase(t)][c][p + shift(t)]
//
// A block of M kernels by V vectors of places stays in registers: for each c and t, V loads, M weights, M * V
// multiply-adds. Weights are packed as [blocks of M][c][t][M], so they are read in order.

// Kernels of a block, and the most vectors beside them: as many sums as fit the registers, with room for loads.
#if REGISTERS == 32
#define ROWS 8
#define VECTORS(m) ((m) == 8 ? 3 : (m) == 4 ? 6 : 8)
#else
#define ROWS 4
#define VECTORS(m) ((m) == 4 ? 3 : (m) == 2 ? 5 : 8)
#endif

INLINE void NAME(block)(int m, int v, const T *restrict w, const T *restrict flat, ptrdiff_t channels,
                        ptrdiff_t plane, ptrdiff_t taps, const ptrdiff_t *restrict offset,
                        const T *restrict bias, T *restrict tile) {
  vec sum[ROWS * 8];
  UNROLL for (int i = 0; i < m; ++i) UNROLL for (int j = 0; j < v; ++j) sum[i * v + j] = (vec){0} + bias[i];
  for (ptrdiff_t c = 0; c < channels; ++c, flat += plane) {
    for (ptrdiff_t t = 0; t < taps; ++t, w += m) {
      const T *run = flat + offset[t];
      vec x[8];
      UNROLL for (int j = 0; j < v; ++j) x[j] = load(run + j * VL);
      UNROLL for (int i = 0; i < m; ++i) UNROLL for (int j = 0; j < v; ++j) sum[i * v + j] += w[i] * x[j];
    }
  }
  UNROLL for (int i = 0; i < m; ++i) UNROLL for (int j = 0; j < v; ++j)
      store(tile + (i * 8 + j) * VL, sum[i * v + j]);
}

#define CASE(m, v)                                                                              \
  case (m) * 16 + (v):                                                                          \
    if ((v) <= VECTORS(m))                                                                      \
      NAME(block)(m, v, w, flat, s->channels, s->plane, s->taps, offset, bias, tile);           \
    break;

// Compute m kernels at v vectors of places; tile is [m][8 vectors].
static void NAME(tile)(const Convolution *s, int m, int v, const T *w, const T *flat, const ptrdiff_t *offset,
                       const T *bias, T *tile) {
  switch (m * 16 + v) {
#if ROWS == 8
    CASE(8, 1) CASE(8, 2) CASE(8, 3)
    CASE(4, 4) CASE(4, 5) CASE(4, 6)
#endif
    CASE(4, 1) CASE(4, 2) CASE(4, 3)
    CASE(2, 1) CASE(2, 2) CASE(2, 3) CASE(2, 4) CASE(2, 5) CASE(2, 6) CASE(2, 7) CASE(2, 8)
    CASE(1, 1) CASE(1, 2) CASE(1, 3) CASE(1, 4) CASE(1, 5) CASE(1, 6) CASE(1, 7) CASE(1, 8)
  }
}

// Write what belongs to an output place of a tile, flat numbers p on, to y.
INLINE void NAME(scatter)(const Convolution *s, const T *tile, ptrdiff_t kernels, ptrdiff_t p, ptrdiff_t count,
                          T *y) {
  const T *end = tile + count;
  ptrdiff_t row = p / s->extent[2], q = p % s->extent[2];
  while (tile < end) {
    ptrdiff_t run = least(s->box[2] - q, end - tile), h = row % s->extent[1];
    if (run > 0 && h < s->box[1]) {
      T *to = y + row / s->extent[1] * s->y[2] + h * s->y[3] + q * s->y[4];
      if (s->y[1] == 1) {  // channels last
        for (ptrdiff_t i = 0; i < run; ++i)
          for (ptrdiff_t k = 0; k < kernels; ++k) to[i * s->y[4] + k] = tile[k * 8 * VL + i];
      } else if (s->y[4] == 1) {
        for (ptrdiff_t k = 0; k < kernels; ++k) {
          ptrdiff_t i = 0;
          for (; i + VL <= run; i += VL) store(to + k * s->y[1] + i, load(tile + k * 8 * VL + i));
          for (; i < run; ++i) to[k * s->y[1] + i] = tile[k * 8 * VL + i];
        }
      } else {
        for (ptrdiff_t k = 0; k < kernels; ++k)
          for (ptrdiff_t i = 0; i < run; ++i) to[k * s->y[1] + i * s->y[4]] = tile[k * 8 * VL + i];
      }
    }
    tile += s->extent[2] - q;
    ++row;
    q = 0;
  }
}

// The kernels of the block at k of n: ROWS, or at the end the least of 8, 4, 2, 1 that holds the rest.
INLINE ptrdiff_t NAME(rows_at)(ptrdiff_t k, ptrdiff_t n) {
  ptrdiff_t rest = n - k, m = ROWS;
  while (m / 2 >= rest) m /= 2;
  return m;
}

// Write packed weights, [groups][blocks][c][t][M], of w with strides `step` (k, c, d, h, w) and these taps, and
// biases [groups][k], zeros where there is none; `padded` kernels a group.
EXPORT void NAME(pack)(const T *w, const T *b, ptrdiff_t kernels, ptrdiff_t padded,
                       ptrdiff_t channels, const ptrdiff_t *kernel, const ptrdiff_t *step, ptrdiff_t group0,
                       ptrdiff_t group1, ptrdiff_t k0, ptrdiff_t k1, T *packed, T *bias) {
  ptrdiff_t taps = kernel[0] * kernel[1] * kernel[2];
  for (ptrdiff_t g = group0; g < group1; ++g) {
    for (ptrdiff_t k = k0; k < least(k1, kernels);) {
      ptrdiff_t m = NAME(rows_at)(k, kernels), there = least(m, kernels - k);
      T *to = packed + (g * padded + k) * channels * taps;
      for (ptrdiff_t i = 0; i < m; ++i)
        bias[g * padded + k + i] = b && i < there ? b[g * kernels + k + i] : 0;
      for (ptrdiff_t c = 0; c < channels; ++c)
        for (ptrdiff_t d = 0; d < kernel[0]; ++d)
          for (ptrdiff_t h = 0; h < kernel[1]; ++h)
            for (ptrdiff_t j = 0; j < kernel[2]; ++j, to += m) {
              const T *from = w + (g * kernels + k) * step[0] + c * step[1] + d * step[2] + h * step[3] + j * step[4];
              for (ptrdiff_t i = 0; i < m; ++i) to[i] = i < there ? from[i * step[0]] : 0;
            }
      k += m;
    }
  }
}

// Convolve a box of some images and groups. x and y point at the first image and the first group's first
// channel, y at the box's first place. `flat` holds one image's group, with 8 vectors behind it.
EXPORT void NAME(convolve)(const Convolution *s, const ptrdiff_t *residue, const ptrdiff_t *offset, const T *x,
                           const T *packed, const T *bias, T *y, ptrdiff_t padded, T *flat) {
  T tile[ROWS * 8 * VECTOR_BYTES / sizeof(T)] __attribute__((aligned(64)));
  for (ptrdiff_t n = 0; n < s->images; ++n) {
    for (ptrdiff_t g = 0; g < s->groups; ++g) {
      NAME(flatten)(s, residue, x + n * s->x[0] + g * s->channels * s->x[1], flat);
      for (ptrdiff_t k = 0; k < s->kernels;) {
        ptrdiff_t m = NAME(rows_at)(k, s->kernels);
        const T *w = packed + (g * padded + k) * s->channels * s->taps;
        T *to = y + n * s->y[0] + (g * s->kernels + k) * s->y[1];
        for (ptrdiff_t p = 0; p < s->places;) {
          ptrdiff_t v = least(VECTORS(m), (s->places - p + VL - 1) / VL);
          NAME(tile)(s, (int)m, (int)v, w, flat + p, offset, bias + g * padded + k, tile);
          NAME(scatter)(s, tile, least(m, s->kernels - k), p, least(v * VL, s->places - p), to);
          p += v * VL;
        }
        k += m;
      }
    }
  }
}
