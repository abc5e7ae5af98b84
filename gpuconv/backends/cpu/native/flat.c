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

// What a row holds: columns begin to end read x, from its place `at` on; the others are zeros.
typedef struct {
  ptrdiff_t columns, begin, end, at;
} Row;

INLINE Row NAME(row_of)(ptrdiff_t columns, ptrdiff_t at, ptrdiff_t size, ptrdiff_t stride) {
  ptrdiff_t begin = least(columns, at >= 0 ? 0 : (-at + stride - 1) / stride);
  ptrdiff_t end = at >= size ? begin : most(begin, least(columns, (size - 1 - at) / stride + 1));
  return (Row){columns, begin, end, at};
}

// Write one row of one channel; places of x are `step` apart. Up to a vector of zeros follows the row: rows
// are written in order, and the last one has room behind it.
INLINE void NAME(fill_row)(T *to, Row row, const T *from, ptrdiff_t stride, ptrdiff_t step) {
  for (ptrdiff_t q = 0; q < row.begin; ++q) to[q] = 0;
  const T *source = from + row.at * step;
  ptrdiff_t jump = stride * step, q = row.begin;
  if (jump == 1) {
    for (; q + VL <= row.end; q += VL) store(to + q, load(source + q));
    if (q < row.end) {
      store(to + q, load_part(source + q, row.end - q));
      q += VL;
    }
  } else if (jump == 2) {
    for (; q < row.end; ++q) to[q] = source[q * 2];
  } else {
    for (; q < row.end; ++q) to[q] = source[q * jump];
  }
  for (; q < row.columns; ++q) to[q] = 0;
}

// Write a row of each of some channels that lie side by side: rows of `to` are `plane` apart.
INLINE void NAME(fill_rows_across)(T *to, ptrdiff_t plane, Row row, const T *from, ptrdiff_t stride,
                                   ptrdiff_t step, ptrdiff_t channels) {
  for (ptrdiff_t c = 0; c < channels; c += VL, to += VL * plane, from += VL) {
    ptrdiff_t across = least(VL, channels - c);
    for (ptrdiff_t i = 0; i < across; ++i) {
      for (ptrdiff_t q = 0; q < row.begin; ++q) to[i * plane + q] = 0;
      for (ptrdiff_t q = row.end; q < row.columns; ++q) to[i * plane + q] = 0;
    }
    for (ptrdiff_t q = row.begin; q < row.end; q += VL)
      NAME(turn)(to + q, plane, from + (row.at + q * stride) * step, stride * step, least(VL, row.end - q),
                 across);
  }
}

// Lay out one image's channels; `residue` is [phases, 3].
INLINE void NAME(flatten)(const Convolution *s, const ptrdiff_t *residue, const T *x, T *flat) {
  const ptrdiff_t *e = s->extent;
  ptrdiff_t across = s->x[1] == 1 && s->channels > 1;
  for (ptrdiff_t phase = 0; phase < s->phases; ++phase, residue += 3) {
    Row full = NAME(row_of)(e[2], s->first[2] + residue[2], s->size[2], s->stride[2]);
    Row none = {e[2], 0, 0, 0};
    for (ptrdiff_t c = 0; c < s->channels; c += across ? s->channels : 1) {
      T *to = flat + (phase * s->channels + c) * s->plane;
      for (ptrdiff_t d = s->first[0] + residue[0], slice = 0; slice < e[0]; ++slice, d += s->stride[0]) {
        for (ptrdiff_t h = s->first[1] + residue[1], i = 0; i < e[1]; ++i, h += s->stride[1], to += e[2]) {
          ptrdiff_t inside = d >= 0 && d < s->size[0] && h >= 0 && h < s->size[1];
          const T *from = inside ? x + c * s->x[1] + d * s->x[2] + h * s->x[3] : x;
          Row row = inside ? full : none;
          if (across)
            NAME(fill_rows_across)(to, s->plane, row, from, s->stride[2], s->x[4], s->channels);
          else
            NAME(fill_row)(to, row, from, s->stride[2], s->x[4]);
        }
      }
    }
    for (ptrdiff_t c = 0; c < s->channels; ++c)
      for (ptrdiff_t p = e[0] * e[1] * e[2]; p < s->plane; ++p)
        flat[(phase * s->channels + c) * s->plane + p] = 0;
  }
}
