// The gradient by the weights: the same runs of the flat image as in multiply.c, times runs of dy.
//
//     dw[k, c, t] += sum over n, p of  dy[n][k][p] * flat[n][phase(t)][c][p + shift(t)]
//
// with dy flat too: 0 at every number that is no output place. A block of K kernels by R runs of x stays in
// registers: for each vector of places K + R loads and K * R multiply-adds, lanes added at the end.

#if REGISTERS == 32
#define DOT_KERNELS 4
#else
#define DOT_KERNELS 2
#endif
#define DOT_RUNS 6
#define LONE_RUNS 9  // of one kernel, as depthwise convolution has

INLINE void NAME(dot_block)(int kernels, int runs, const Convolution *s, ptrdiff_t dy_image, ptrdiff_t dy_row,
                            ptrdiff_t x_image, const T *dy, const T *flat, const ptrdiff_t *offset, T *dw,
                            ptrdiff_t row) {
  vec sum[DOT_KERNELS * LONE_RUNS];
  UNROLL for (int i = 0; i < kernels * runs; ++i) sum[i] = (vec){0};
  for (ptrdiff_t n = 0; n < s->images; ++n, dy += dy_image, flat += x_image) {
    const T *x[LONE_RUNS];
    UNROLL for (int r = 0; r < runs; ++r) x[r] = flat + offset[r];
    for (ptrdiff_t p = 0; p < s->places; p += VL) {
      vec d[DOT_KERNELS];
      UNROLL for (int k = 0; k < kernels; ++k) d[k] = load(dy + k * dy_row + p);
      UNROLL for (int r = 0; r < runs; ++r) {
        vec b = load(x[r] + p);
        UNROLL for (int k = 0; k < kernels; ++k) sum[k * runs + r] += d[k] * b;
      }
    }
  }
  UNROLL for (int k = 0; k < kernels; ++k) UNROLL for (int r = 0; r < runs; ++r) {
    T total[VECTOR_BYTES / sizeof(T)] __attribute__((aligned(64)));
    store(total, sum[k * runs + r]);
    UNROLL for (ptrdiff_t half = VL / 2; half; half /= 2)
      UNROLL for (ptrdiff_t i = 0; i < half; ++i) total[i] += total[i + half];
    dw[k * row + r] += total[0];
  }
}

#define DOTS(k, r)                                                                                  \
  case r:                                                                                           \
    NAME(dot_block)(k, r, s, dy_image, dy_row, x_image, dy, flat, offset, dw, row);                 \
    break;

// Add the gradient of a box of some images, one group, to dw, [kernels rounded up][channels * taps]. x points
// at the first channel, dy at the box's first place. `flat` holds all images of x, then all of dy.
EXPORT void NAME(weight_gradient)(const Convolution *s, const ptrdiff_t *residue, const ptrdiff_t *offsets,
                                  const T *x, const T *gradient, T *dw, T *flat) {
  ptrdiff_t x_image = s->phases * s->channels * s->plane;
  ptrdiff_t dy_row = (s->places + VL - 1) / VL * VL;
  ptrdiff_t per = s->kernels == 1 ? 1 : DOT_KERNELS;
  ptrdiff_t dy_image = (s->kernels + per - 1) / per * per * dy_row;
  for (ptrdiff_t n = 0; n < s->images; ++n) NAME(flatten)(s, residue, x + n * s->x[0], flat + n * x_image);
  T *flat_dy = flat + s->images * x_image;
  for (ptrdiff_t i = 0; i < 8 * VL; ++i) flat_dy[i] = 0;  // read behind the last image, times zeros
  flat_dy += 8 * VL;
  for (ptrdiff_t n = 0; n < s->images; ++n) {
    T *to = flat_dy + n * dy_image;
    for (ptrdiff_t i = s->kernels * dy_row; i < dy_image; ++i) to[i] = 0;
    ptrdiff_t together = s->y[1] == 1 ? s->kernels : 1;
    for (ptrdiff_t k0 = 0; k0 < s->kernels; k0 += together) {
      for (ptrdiff_t p = 0; p < dy_row; p += s->extent[2]) {
        ptrdiff_t at = p / s->extent[2], d = at / s->extent[1], h = at % s->extent[1];
        ptrdiff_t inside = d < s->box[0] && h < s->box[1];
        for (ptrdiff_t k = k0; k < k0 + together; ++k) {
          const T *from = inside ? gradient + n * s->y[0] + k * s->y[1] + d * s->y[2] + h * s->y[3] : gradient;
          NAME(fill_row)(to + k * dy_row + p, least(s->extent[2], dy_row - p), from, 0, inside ? s->box[2] : 0, 1,
                         s->y[4]);
        }
      }
    }
  }
  ptrdiff_t row = s->channels * s->taps;
  for (ptrdiff_t r = 0; r < row;) {
    const ptrdiff_t *offset = offsets + r;
    ptrdiff_t runs = least(row - r, per == 1 ? LONE_RUNS : DOT_RUNS);
    for (ptrdiff_t k = 0; k < s->kernels; k += per) {
      const T *dy = flat_dy + k * dy_row;
      T *target = dw + k * row + r;
      T *dw = target;
      if (per == 1) switch (runs) {
          DOTS(1, 1) DOTS(1, 2) DOTS(1, 3) DOTS(1, 4) DOTS(1, 5) DOTS(1, 6) DOTS(1, 7) DOTS(1, 8) DOTS(1, 9)
        }
      else switch (runs) {
          DOTS(DOT_KERNELS, 1) DOTS(DOT_KERNELS, 2) DOTS(DOT_KERNELS, 3) DOTS(DOT_KERNELS, 4)
          DOTS(DOT_KERNELS, 5) DOTS(DOT_KERNELS, 6)
        }
    }
    r += runs;
  }
}
