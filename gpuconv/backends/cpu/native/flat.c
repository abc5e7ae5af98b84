// A box of a padded image, laid out flat, so that what a tap reads for all output places is one run.
//
// Output place (d, h, w) of a box has the flat number p = (d * rows + h) * pitch + w, where extent is
// [slices, rows, pitch]. Places of the image that differ by multiples of the stride follow one another in a
// plane of their own, a phase. So tap t reads its phase's plane at p + shift(t), whatever p:
//
//     flat[n][phase][c][d][h][w] = x[n, c, first + residue(phase) + (d, h, w) * stride], 0 in the padding
//
// The numbers between a row's last output and the next row's first are computed too, and thrown away.
// Zeros that end a row and those that begin the next are the same ones, where a pitch so small is given.

// Write one row: `columns` places of x, `step` apart, from place `at` of `size` on.
INLINE void NAME(fill_row)(T *to, ptrdiff_t columns, const T *from, ptrdiff_t at, ptrdiff_t size,
                           ptrdiff_t stride, ptrdiff_t step) {
  ptrdiff_t begin = least(columns, at >= 0 ? 0 : (-at + stride - 1) / stride);
  ptrdiff_t end = at >= size ? begin : most(begin, least(columns, (size - 1 - at) / stride + 1));
  for (ptrdiff_t q = 0; q < begin; ++q) to[q] = 0;
  const T *source = from + at * step;
  ptrdiff_t jump = stride * step;
  if (jump == 1) {
    ptrdiff_t q = begin;
    for (; q + VL <= end; q += VL) store(to + q, load(source + q));
    for (; q < end; ++q) to[q] = source[q];
  } else if (jump == 2) {
    for (ptrdiff_t q = begin; q < end; ++q) to[q] = source[q * 2];
  } else {
    for (ptrdiff_t q = begin; q < end; ++q) to[q] = source[q * jump];
  }
  for (ptrdiff_t q = end; q < columns; ++q) to[q] = 0;
}

// Lay out one image's channels; `residue` is [phases, 3].
INLINE void NAME(flatten)(const Convolution *s, const ptrdiff_t *residue, const T *x, T *flat) {
  const ptrdiff_t *e = s->extent;
  for (ptrdiff_t phase = 0; phase < s->phases; ++phase, residue += 3) {
    T *planes = flat + phase * s->channels * s->plane;
    // Channels last, a row's channels are read together, else a channel's rows.
    ptrdiff_t together = s->x[1] == 1 ? s->channels : 1;
    for (ptrdiff_t c0 = 0; c0 < s->channels; c0 += together) {
      for (ptrdiff_t row = 0; row < e[0] * e[1]; ++row) {
        ptrdiff_t d = s->first[0] + residue[0] + row / e[1] * s->stride[0];
        ptrdiff_t h = s->first[1] + residue[1] + row % e[1] * s->stride[1];
        ptrdiff_t inside = d >= 0 && d < s->size[0] && h >= 0 && h < s->size[1];
        for (ptrdiff_t c = c0; c < c0 + together; ++c) {
          const T *from = inside ? x + c * s->x[1] + d * s->x[2] + h * s->x[3] : x;
          NAME(fill_row)(planes + c * s->plane + row * e[2], e[2], from, s->first[2] + residue[2],
                         inside ? s->size[2] : 0, s->stride[2], s->x[4]);
        }
      }
      for (ptrdiff_t c = c0; c < c0 + together; ++c)
        for (ptrdiff_t p = e[0] * e[1] * e[2]; p < s->plane; ++p) planes[c * s->plane + p] = 0;
    }
  }
}
