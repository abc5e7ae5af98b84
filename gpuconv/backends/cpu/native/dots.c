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
#define L1_BYTES (18 << 10)
#define LONE_RUNS 9  // of one kernel, as depthwise convolution has

INLINE void NAME(dot_block)(int kernels, int runs, const Convolution *s, ptrdiff_t dy_image, ptrdiff_t dy_row,
                            ptrdiff_t x_image, const T *dy, const T *flat, const ptrdiff_t *offset,
                            ptrdiff_t places, T *dw, ptrdiff_t row) {
  vec sum[DOT_KERNELS * LONE_RUNS + VECTOR_BYTES / sizeof(T)];
  UNROLL for (int i = 0; i < kernels * runs; ++i) sum[i] = (vec){0};
  for (ptrdiff_t n = 0; n < s->images; ++n, dy += dy_image, flat += x_image) {
    const T *x[LONE_RUNS];
    vec d[DOT_KERNELS];
    UNROLL for (int r = 0; r < runs; ++r) x[r] = flat + offset[r];
    ptrdiff_t p = 0, rest = places % VL;
    for (; p < places - rest; p += VL) {
      UNROLL for (int k = 0; k < kernels; ++k) d[k] = load(dy + k * dy_row + p);
      UNROLL for (int r = 0; r < runs; ++r) {
        vec b = load(x[r] + p);
        UNROLL for (int k = 0; k < kernels; ++k) sum[k * runs + r] += d[k] * b;
      }
    }
    if (!rest) continue;
    UNROLL for (int k = 0; k < kernels; ++k) d[k] = load_part(dy + k * dy_row + p, rest);
    UNROLL for (int r = 0; r < runs; ++r) {
      vec b = load_part(x[r] + p, rest);
      UNROLL for (int k = 0; k < kernels; ++k) sum[k * runs + r] += d[k] * b;
    }
  }
  NAME(sum_lanes)(sum, kernels * runs);
  T total[DOT_KERNELS * LONE_RUNS + VECTOR_BYTES / sizeof(T)];
  UNROLL for (ptrdiff_t i = 0; i < kernels * runs; i += VL) store(total + i, sum[i / VL]);
  for (int k = 0; k < kernels; ++k)
    UNROLL for (int r = 0; r < runs; ++r) dw[k * row + r] += total[k * runs + r];
}

// Lay out dy's kernels of one image, [kernels][row], zeros where there is no output place.
INLINE void NAME(flatten_dy)(const Convolution *s, const T *dy, T *flat, ptrdiff_t row) {
  ptrdiff_t across = s->y[1] == 1 && s->kernels > 1;
  for (ptrdiff_t k = 0; k < s->kernels; k += across ? s->kernels : 1) {
    for (ptrdiff_t p = 0; p < s->places; p += s->extent[2]) {
      ptrdiff_t at = p / s->extent[2], d = at / s->extent[1], h = at % s->extent[1];
      ptrdiff_t columns = least(s->extent[2], s->places - p);
      Row line = {columns, 0, h < s->box[1] ? s->box[2] : 0, 0};
      const T *from = dy + k * s->y[1] + (line.end ? d * s->y[2] + h * s->y[3] : 0);
      if (across)
        NAME(fill_rows_across)(flat + p, row, line, from, 1, s->y[4], s->kernels);
      else
        NAME(fill_row)(flat + k * row + p, line, from, 1, s->y[4]);
    }
  }
}

#define DOTS(k, r)                                                                          \
  case (k) * 16 + (r):                                                                      \
    NAME(dot_block)(k, r, s, dy_image, dy_row, x_image, dy, x, offset, places, dw, row);    \
    break;

static void NAME(dots)(const Convolution *s, ptrdiff_t kernels, ptrdiff_t runs, ptrdiff_t dy_image,
                       ptrdiff_t dy_row, ptrdiff_t x_image, const T *dy, const T *x, const ptrdiff_t *offset,
                       ptrdiff_t places, T *dw, ptrdiff_t row) {
  switch (kernels * 16 + runs) {
#if DOT_KERNELS == 4
    DOTS(4, 1) DOTS(4, 2) DOTS(4, 3) DOTS(4, 4) DOTS(4, 5) DOTS(4, 6)
    DOTS(3, 1) DOTS(3, 2) DOTS(3, 3) DOTS(3, 4) DOTS(3, 5) DOTS(3, 6)
#endif
    DOTS(2, 1) DOTS(2, 2) DOTS(2, 3) DOTS(2, 4) DOTS(2, 5) DOTS(2, 6)
    DOTS(1, 1) DOTS(1, 2) DOTS(1, 3) DOTS(1, 4) DOTS(1, 5) DOTS(1, 6) DOTS(1, 7) DOTS(1, 8) DOTS(1, 9)
  }
}

// Add the gradient of a box of some images, one group, to dw, [kernels][channels * taps]. x points at the first
// channel, dy at the box's first place. `flat` holds what isn't in place: all images of x, then all of dy.
EXPORT void NAME(weight_gradient)(const Convolution *s, const ptrdiff_t *residue, const ptrdiff_t *offset,
                                  const T *x, const T *dy, T *dw, T *flat) {
  ptrdiff_t x_image = s->x[0], dy_image = s->y[0], dy_row = s->y[1], row = s->channels * s->taps;
  if (s->x_in_place) {
    x += s->first[0] * s->x[2] + s->first[1] * s->x[3] + s->first[2] * s->x[4];
  } else {
    x_image = s->phases * s->channels * s->plane;
    for (ptrdiff_t n = 0; n < s->images; ++n) NAME(flatten)(s, residue, x + n * s->x[0], flat + n * x_image);
    x = flat;
    flat += s->images * x_image;
  }
  if (!s->y_in_place) {
    dy_row = (s->places + VL - 1) / VL * VL;
    dy_image = s->kernels * dy_row;
    for (ptrdiff_t n = 0; n < s->images; ++n) NAME(flatten_dy)(s, dy + n * s->y[0], flat + n * dy_image, dy_row);
    dy = flat;
  }
  // A block's runs stay in the L1 from one block of kernels to the next; runs of one channel lie in one place.
  ptrdiff_t chunk = s->taps < DOT_RUNS ? L1_BYTES / (ptrdiff_t)sizeof(T) / DOT_RUNS / VL * VL : s->places;
  for (ptrdiff_t p = 0; p < s->places; p += chunk) {
    for (ptrdiff_t r = 0; r < row;) {
      ptrdiff_t runs = least(row - r, s->kernels == 1 ? LONE_RUNS : DOT_RUNS);
      for (ptrdiff_t k = 0; k < s->kernels; k += DOT_KERNELS)
        NAME(dots)(s, least(DOT_KERNELS, s->kernels - k), runs, dy_image, dy_row, x_image, dy + k * dy_row + p,
                   x + p, offset + r, least(chunk, s->places - p), dw + k * row + r, row);
      r += runs;
    }
  }
}
