// Pooling with vectors of outputs along a row (channels first, and any strides).
//
// Rows of x are laid out first, padding included, one phase of the stride after the other, so that what a tap
// reads for all outputs of a row is one run of memory:
//
//     laid[phase][p] = x[.., p * stride + phase - before]
//     tap j of output q is at  phase = (j * dilation) % stride,  p = q + (j * dilation) / stride
//
// A row is laid out once for all windows of a slice that have it: as many rows are kept as a window spans.
// Padding is -infinity, which wins over nothing; rows of padding are left out.

typedef struct {
  ptrdiff_t pitch, phases, row, kept;  // elements of a phase, phases, elements of a row, rows of a slice
} NAME(Rows);

INLINE NAME(Rows) NAME(rows_of)(const Pooling *s) {
  NAME(Rows) r;
  r.pitch = s->out[2] + (span_of(s, 2) - 1) / s->stride[2] + VL;
  r.phases = least(s->stride[2], span_of(s, 2));
  r.row = r.pitch * r.phases;
  r.kept = least(span_of(s, 1), s->size[1]);
  return r;
}

INLINE void NAME(lay_row)(const Pooling *s, NAME(Rows) r, const T *x, T fill, T *to) {
  ptrdiff_t stride = s->stride[2], jump = stride * s->x[4];
  for (ptrdiff_t phase = 0; phase < r.phases; ++phase, to += r.pitch) {
    ptrdiff_t at = phase - s->before[2];
    ptrdiff_t begin = least(r.pitch, at < 0 ? (-at + stride - 1) / stride : 0);
    ptrdiff_t end = at < s->size[2] ? least(r.pitch, (s->size[2] - 1 - at) / stride + 1) : 0;
    const T *from = x + at * s->x[4];
    for (ptrdiff_t p = 0; p < begin; ++p) to[p] = fill;
    if (jump == 1) for (ptrdiff_t p = begin; p < end; ++p) to[p] = from[p];
    else if (jump == 2) for (ptrdiff_t p = begin; p < end; ++p) to[p] = from[2 * p];
    else for (ptrdiff_t p = begin; p < end; ++p) to[p] = from[p * jump];
    for (ptrdiff_t p = most(begin, end); p < r.pitch; ++p) to[p] = fill;
  }
}

// Compute a row of outputs from `number` laid rows, whose taps are numbered from tap[k] on.
INLINE void NAME(row_outputs)(int op, const Pooling *s, ptrdiff_t number, const T *const *rows,
                              const ptrdiff_t *tap, const ptrdiff_t *offset, const INT *first, const T *share,
                              T *y, INT *mask) {
  for (ptrdiff_t q = 0; q < s->out[2]; q += VL) {
    vec best = (vec){0} + (op == MEAN ? 0 : LOWEST);
    ivec at = *(const ivec *)(first + q) + (INT)tap[0];
    for (ptrdiff_t k = 0; k < number; ++k) {
      const T *row = rows[k] + q;
      for (ptrdiff_t j = 0; j < s->kernel[2];) {
        ptrdiff_t stop = least(s->kernel[2], j + MANY);
        vec sum = {0};
        for (; j < stop; ++j) {
          vec v = load(row + offset[j]);
          if (op == MEAN) sum += v;
          else NAME(take)(op, v, (ivec){0} + (INT)(tap[k] + j), &best, &at);
        }
        if (op == MEAN) best += sum;
      }
    }
    if (op == MEAN) best *= load(share + q);
    store(y + q, best);
    if (op == MAX_AND_MASK) *(ivec *)(mask + q) = at;
  }
}

INLINE void NAME(write_row)(ptrdiff_t count, const T *row, T *y, ptrdiff_t step) {
  if (step == 1) for (ptrdiff_t q = 0; q < count; ++q) y[q] = row[q];
  else for (ptrdiff_t q = 0; q < count; ++q) y[q * step] = row[q];
}

INLINE void NAME(write_mask)(const Pooling *s, const INT *row, char *mask) {
  ptrdiff_t count = s->out[2], step = s->mask[4];
  if (s->mask_bytes == 1 && step == 1)
    for (ptrdiff_t q = 0; q < count; ++q) ((unsigned char *)mask)[q] = (unsigned char)row[q];
  else
    for (ptrdiff_t q = 0; q < count; ++q) NAME(store_one)(s, row[q], mask + q * step * s->mask_bytes);
}

// One plane (or volume); memory is [kernel d][rows kept][row], then five rows of outputs and three of taps.
INLINE void NAME(rows)(int op, const Pooling *s, const T *x, const double *shares, T *y, char *mask,
                       T *memory) {
  NAME(Rows) r = NAME(rows_of)(s);
  ptrdiff_t width = s->out[2] + VL, slice = r.kept * r.row, taps = s->kernel[0] * s->kernel[1];
  const T **rows = (const T **)memory;
  ptrdiff_t *tap = (ptrdiff_t *)(rows + taps), *offset = tap + taps;
  T *ring = (T *)(offset + s->kernel[2]), *result = ring + s->kernel[0] * slice, *share = result + width;
  INT *at = (INT *)(share + width), *first = at + width;
  for (ptrdiff_t j = 0; j < s->kernel[2]; ++j)
    offset[j] = j * s->dilation[2] % s->stride[2] * r.pitch + j * s->dilation[2] / s->stride[2];
  for (ptrdiff_t q = 0; q < width; ++q) first[q] = q < s->out[2] ? (INT)taps_inside(s, 2, q).begin : 0;
  double shared = 0;
  for (ptrdiff_t od = 0; od < s->out[0]; ++od) {
    Range d = taps_inside(s, 0, od);
    ptrdiff_t laid = 0;
    for (ptrdiff_t oh = 0; oh < s->out[1]; ++oh) {
      Range h = taps_inside(s, 1, oh);
      ptrdiff_t low = most(0, place(s, 1, oh, 0)), high = place(s, 1, oh, h.end - 1) + 1, number = 0;
      for (ptrdiff_t jd = d.begin; jd < d.end; ++jd) {
        for (ptrdiff_t row = most(laid, low); row < high; ++row)
          NAME(lay_row)(s, r, x + place(s, 0, od, jd) * s->x[2] + row * s->x[3], op == MEAN ? 0 : LOWEST,
                        ring + jd * slice + row % r.kept * r.row);
        for (ptrdiff_t jh = h.begin; jh < h.end; ++jh, ++number) {
          rows[number] = ring + jd * slice + place(s, 1, oh, jh) % r.kept * r.row;
          tap[number] = (jd * s->kernel[1] + jh) * s->kernel[2];
        }
      }
      laid = most(laid, high);
      if (op == MEAN && (oh == 0 || row_share(s, shares, od, oh) != shared)) {
        shared = row_share(s, shares, od, oh);
        for (ptrdiff_t q = 0; q < s->out[2]; ++q) share[q] = (T)(shared * shares[s->out[0] + s->out[1] + q]);
      }
      NAME(row_outputs)(op, s, number, rows, tap, offset, first, share, result, at);
      NAME(write_row)(s->out[2], result, y + od * s->y[2] + oh * s->y[3], s->y[4]);
      if (op == MAX_AND_MASK)
        NAME(write_mask)(s, at, mask + (od * s->mask[2] + oh * s->mask[3]) * s->mask_bytes);
    }
  }
}
