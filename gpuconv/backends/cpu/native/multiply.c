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
#define VECTORS(m) ((m) == 4 ? 3 : (m) == 3 ? 4 : (m) == 2 ? 5 : 8)
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
      NAME(block)(m, v, w, flat, s->channels, plane, s->taps, offset, bias, tile);           \
    break;

// Compute m kernels at v vectors of places; tile is [m][8 vectors].
static void NAME(tile)(const Convolution *s, int m, int v, const T *w, const T *flat, ptrdiff_t plane,
                       const ptrdiff_t *offset, const T *bias, T *tile) {
  switch (m * 16 + v) {
#if ROWS == 8
    CASE(8, 1) CASE(8, 2) CASE(8, 3)
    CASE(4, 4) CASE(4, 5) CASE(4, 6)
    CASE(3, 5) CASE(3, 6) CASE(3, 7) CASE(3, 8)
#endif
    CASE(4, 1) CASE(4, 2) CASE(4, 3) CASE(3, 1) CASE(3, 2) CASE(3, 3) CASE(3, 4)
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
      if (s->y[1] == 1 && kernels > 1) {  // channels last
        for (ptrdiff_t k0 = 0; k0 < kernels; k0 += VL) {
          ptrdiff_t across = least(VL, kernels - k0);
          for (ptrdiff_t i = 0; i < run; i += VL)
            NAME(turn)(to + i * s->y[4] + k0, s->y[4], tile + k0 * 8 * VL + i, 8 * VL, across, least(VL, run - i));
        }
      } else if (s->y[4] == 1) {
        for (ptrdiff_t k = 0; k < kernels; ++k) {
          ptrdiff_t i = 0;
          for (; i + VL <= run; i += VL) store(to + k * s->y[1] + i, load(tile + k * 8 * VL + i));
          if (i < run) store_part(to + k * s->y[1] + i, load(tile + k * 8 * VL + i), run - i);
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

// The kernels of the block at k of n: ROWS, or at the end the least of 4, 3, 2, 1 that holds the rest.
INLINE ptrdiff_t NAME(rows_at)(ptrdiff_t k, ptrdiff_t n) {
  ptrdiff_t rest = n - k;
  return rest > 4 ? ROWS : rest;
}

// Multiply one image's group, flat numbers `p0` to `end`, by the weights of all its kernels.
INLINE void NAME(multiply)(const Convolution *s, ptrdiff_t p0, ptrdiff_t end, const T *flat, ptrdiff_t plane,
                           const ptrdiff_t *offset, const T *packed, const T *bias, T *y) {
  T tile[2 * ROWS * 8 * VECTOR_BYTES / sizeof(T)] __attribute__((aligned(64)));
  for (ptrdiff_t k = 0; k < s->kernels;) {
    // Channels last, two blocks are written together: a cache line of sixteen kernels at a time.
    ptrdiff_t m = NAME(rows_at)(k, s->kernels), more = 0;
    if (s->y[1] == 1 && m == ROWS && k + m < s->kernels) more = NAME(rows_at)(k + m, s->kernels);
    const T *w = packed + k * s->channels * s->taps;
    for (ptrdiff_t p = p0; p < end;) {
      ptrdiff_t rest = (end - p + VL - 1) / VL, v = least(VECTORS(m), rest);
      if (rest > v && rest < 2 * v) v = (rest + 1) / 2;  // 4 as 2 + 2, not 3 + 1: more multiply-adds a load
      NAME(tile)(s, (int)m, (int)v, w, flat + (p - p0), plane, offset, bias + k, tile);
      if (more)
        NAME(tile)(s, (int)more, (int)v, w + m * s->channels * s->taps, flat + (p - p0), plane, offset,
                   bias + k + m, tile + m * 8 * VL);
      NAME(scatter)(s, tile, least(m + more, s->kernels - k), p, least(v * VL, end - p), y + k * s->y[1]);
      p += v * VL;
    }
    k += m + more;
  }
}

// Convolve a box of some images and groups. x and y point at the first image and the first group's first
// channel, y at the box's first place. `flat` holds one image's group, with 8 vectors behind it, or, where x is
// in place (for 1x1 kernels), a vector of each channel: what is left of the places.
EXPORT void NAME(convolve)(const Convolution *s, const ptrdiff_t *residue, const ptrdiff_t *offset, const T *x,
                           const T *packed, const T *bias, T *y, ptrdiff_t padded, T *flat) {
  for (ptrdiff_t n = 0; n < s->images; ++n) {
    for (ptrdiff_t g = 0; g < s->groups; ++g) {
      const T *image = x + n * s->x[0] + g * s->channels * s->x[1];
      const T *w = packed + g * padded * s->channels * s->taps;
      T *to = y + n * s->y[0] + g * s->kernels * s->y[1];
      if (s->x_in_place) {
        ptrdiff_t whole = s->places / VL * VL, rest = s->places - whole;
        image += s->first[0] * s->x[2] + s->first[1] * s->x[3] + s->first[2] * s->x[4];
        NAME(multiply)(s, 0, whole, image, s->x[1], offset, w, bias + g * padded, to);
        if (!rest) continue;
        for (ptrdiff_t c = 0; c < s->channels; ++c)
          store(flat + c * VL, load_part(image + whole + c * s->x[1], rest));
        NAME(multiply)(s, whole, s->places, flat, VL, offset, w, bias + g * padded, to);
      } else {
        NAME(flatten)(s, residue, image, flat);
        NAME(multiply)(s, 0, s->places, flat, s->plane, offset, w, bias + g * padded, to);
      }
    }
  }
}
