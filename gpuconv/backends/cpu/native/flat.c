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
    if (q < end) store_part(to + q, load_part(source + q, end - q), end - q);
  } else if (jump == 2) {
    for (ptrdiff_t q = begin; q < end; ++q) to[q] = source[q * 2];
  } else {
    for (ptrdiff_t q = begin; q < end; ++q) to[q] = source[q * jump];
  }
  for (ptrdiff_t q = end; q < columns; ++q) to[q] = 0;
}

// Write `rows` rows of `to`, each `count` long, of as many columns of `from`: both at most VL.
INLINE void NAME(turn)(T *to, ptrdiff_t to_step, const T *from, ptrdiff_t from_step, ptrdiff_t count,
                       ptrdiff_t rows) {
  vec v[VECTOR_BYTES / sizeof(T)];  // in registers: every index is a constant
  if (count == VL && rows == VL) {
    UNROLL for (ptrdiff_t i = 0; i < VL; ++i) v[i] = load(from + i * from_step);
    NAME(transpose)(v);
    UNROLL for (ptrdiff_t i = 0; i < VL; ++i) store(to + i * to_step, v[i]);
  } else {
    UNROLL for (ptrdiff_t i = 0; i < VL; ++i) v[i] = i < count ? load_part(from + i * from_step, rows) : (vec){0};
    NAME(transpose)(v);
    UNROLL for (ptrdiff_t i = 0; i < VL; ++i) if (i < rows) store_part(to + i * to_step, v[i], count);
  }
}

// Write a row of each of some channels that lie side by side: places are `jump` apart, rows of `to` `plane`.
INLINE void NAME(fill_rows_across)(T *to, ptrdiff_t plane, ptrdiff_t columns, const T *from, ptrdiff_t at,
                                   ptrdiff_t size, ptrdiff_t stride, ptrdiff_t step, ptrdiff_t channels) {
  ptrdiff_t begin = least(columns, at >= 0 ? 0 : (-at + stride - 1) / stride);
  ptrdiff_t end = at >= size ? begin : most(begin, least(columns, (size - 1 - at) / stride + 1));
  for (ptrdiff_t c = 0; c < channels; c += VL, to += VL * plane, from += VL) {
    ptrdiff_t across = least(VL, channels - c);
    for (ptrdiff_t i = 0; i < across; ++i) {
      for (ptrdiff_t q = 0; q < begin; ++q) to[i * plane + q] = 0;
      for (ptrdiff_t q = end; q < columns; ++q) to[i * plane + q] = 0;
    }
    for (ptrdiff_t q = begin; q < end; q += VL)
      NAME(turn)(to + q, plane, from + (at + q * stride) * step, stride * step, least(VL, end - q), across);
  }
}

// Lay out one image's channels; `residue` is [phases, 3].
INLINE void NAME(flatten)(const Convolution *s, const ptrdiff_t *residue, const T *x, T *flat) {
  const ptrdiff_t *e = s->extent;
  for (ptrdiff_t phase = 0; phase < s->phases; ++phase, residue += 3) {
    T *planes = flat + phase * s->channels * s->plane;
    ptrdiff_t at = s->first[2] + residue[2], across = s->x[1] == 1 && s->channels > 1;
    for (ptrdiff_t c = 0; c < s->channels; c += across ? s->channels : 1) {
      for (ptrdiff_t row = 0; row < e[0] * e[1]; ++row) {
        ptrdiff_t d = s->first[0] + residue[0] + row / e[1] * s->stride[0];
        ptrdiff_t h = s->first[1] + residue[1] + row % e[1] * s->stride[1];
        ptrdiff_t inside = d >= 0 && d < s->size[0] && h >= 0 && h < s->size[1] ? s->size[2] : 0;
        const T *from = inside ? x + c * s->x[1] + d * s->x[2] + h * s->x[3] : x;
        T *to = planes + c * s->plane + row * e[2];
        if (across)
          NAME(fill_rows_across)(to, s->plane, e[2], from, at, inside, s->stride[2], s->x[4], s->channels);
        else
          NAME(fill_row)(to, e[2], from, at, inside, s->stride[2], s->x[4]);
      }
    }
    for (ptrdiff_t c = 0; c < s->channels; ++c)
      for (ptrdiff_t p = e[0] * e[1] * e[2]; p < s->plane; ++p) planes[c * s->plane + p] = 0;
  }
}
