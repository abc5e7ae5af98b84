// Pooling with vectors of outputs along a row (channels first, and any strides).
//
//     y[.., q] = max or mean over rows of x, and taps j, of  row[q * jump + offset[j]]
//
// Rows are read where they lie if their places are side by side and the stride (jump) is 1 or 2: every second
// element is the even or the odd ones of two vectors. Lanes that lie in the padding are not read, but filled.
//
// Other rows are laid out first, padding included, one phase of the stride after the other, so that what a
// tap reads for all outputs of a row is one run of memory, and jump is 1:
//
//     laid[phase][p] = x[.., p * stride + phase - before]
//     tap j of output q is at  phase = (j * dilation) % stride,  p = q + (j * dilation) / stride
//
// Some rows of outputs are computed at a time, one vector of each after the other. Padding is -infinity,
// which wins over nothing, or 0; rows of padding are left out.

// How a row is read. `near`: few taps, side by side; the compiler is told how many.
#define Taps NAME(Taps)
typedef struct {
  int jump, near;
  ptrdiff_t count;
} Taps;

#define Rows NAME(Rows)
typedef struct {
  ptrdiff_t start, size;          // output 0's first place in a row, and a row's places
  ptrdiff_t row, slice;           // elements from row to row, and from a tap's slice to the next one's
  ptrdiff_t block;                // rows of outputs at a time
  ptrdiff_t pitch, phases, laid;  // elements of a laid phase, phases, laid rows of a slice
  ptrdiff_t *offset;              // each tap's place beside the window's first
  INT *first;                     // each output's first tap that is inside of the row
  T *memory;                      // for laid rows; null where x is read as it lies
} Rows;

#define LAID_BLOCK 8

// memory is a word for each tap of a row, a row of outputs, and, where rows are laid, [kernel d][laid][row].
INLINE Rows NAME(rows_of)(const Pooling *s, T *memory) {
  Rows r = {.start = -s->before[2], .size = s->size[2], .row = s->x[3]};
  r.slice = s->dilation[0] * s->x[2];
  ptrdiff_t width = s->out[2] + VL;
  r.offset = (ptrdiff_t *)memory;
  r.first = (INT *)(r.offset + s->kernel[2]);
  for (ptrdiff_t j = 0; j < s->kernel[2]; ++j) r.offset[j] = j * s->dilation[2];
  for (ptrdiff_t q = 0; q < width; ++q) r.first[q] = q < s->out[2] ? (INT)taps_inside(s, 2, q).begin : 0;
  r.block = s->out[2] <= VL ? s->out[1] : 4;
  if (s->x[4] == 1 && s->stride[2] <= 2) return r;
  r.memory = (T *)(r.first + width);
  r.pitch = s->out[2] + (span_of(s, 2) - 1) / s->stride[2] + VL;
  r.phases = least(s->stride[2], span_of(s, 2));
  r.block = LAID_BLOCK;
  r.laid = least(s->size[1], span_of(s, 1) + (r.block - 1) * s->stride[1]);
  r.start = 0, r.size = r.row = r.pitch * r.phases, r.slice = r.laid * r.row;
  for (ptrdiff_t j = 0; j < s->kernel[2]; ++j)
    r.offset[j] = r.offset[j] % s->stride[2] * r.pitch + r.offset[j] / s->stride[2];
  return r;
}

INLINE void NAME(lay_row)(const Pooling *s, const Rows *r, const T *x, T fill, T *to) {
  ptrdiff_t stride = s->stride[2], jump = stride * s->x[4];
  for (ptrdiff_t phase = 0; phase < r->phases; ++phase, to += r->pitch) {
    ptrdiff_t at = phase - s->before[2];
    ptrdiff_t begin = least(r->pitch, at < 0 ? (-at + stride - 1) / stride : 0);
    ptrdiff_t end = at < s->size[2] ? least(r->pitch, (s->size[2] - 1 - at) / stride + 1) : 0;
    const T *from = x + at * s->x[4];
    for (ptrdiff_t p = 0; p < begin; ++p) to[p] = fill;
    for (ptrdiff_t p = begin; p < end; ++p) to[p] = from[p * jump];
    for (ptrdiff_t p = most(begin, end); p < r->pitch; ++p) to[p] = fill;
  }
}

// Places p, p + 1 .. of a row; at its edge, `fill` where it has none.
INLINE vec NAME(places_from)(int edge, const T *row, ptrdiff_t size, ptrdiff_t p, T fill) {
  if (!edge) return load(row + p);
  lanes set = among(least(VL, most(0, -p)), least(VL, most(0, size - p)));
  return load_over((vec){0} + fill, row + p, set);
}

// What a tap reads: place p and every jump-th after it. Those after even ones come from the same two vectors.
INLINE vec NAME(tap_from)(int jump, int odd, int edge, const T *row, ptrdiff_t size, ptrdiff_t p, T fill) {
  if (jump == 1) return NAME(places_from)(edge, row, size, p, fill);
  vec a = NAME(places_from)(edge, row, size, p - odd, fill);
  vec b = NAME(places_from)(edge, row, size, p - odd + VL, fill);
  return odd ? NAME(odd)(a, b) : NAME(even)(a, b);
}

// Take a row for a vector of outputs whose first reads from place p on. `tap` is the number of its first tap.
// A row's taps are joined first, so that rows needn't wait for each other.
INLINE void NAME(take_row)(int op, Taps a, int edge, const Rows *r, const T *row, ptrdiff_t size, ptrdiff_t p,
                           INT tap, vec *best, ivec *at) {
  const T fill = op == MEAN ? 0 : LOWEST;
  for (ptrdiff_t j = 0; j < a.count;) {
    ptrdiff_t stop = a.near ? a.count : least(a.count, j + MANY);
    ivec which = (ivec){0} + (INT)(tap + j);
    vec some = NAME(tap_from)(a.jump, 0, edge, row, size, p + (a.near ? j : r->offset[j]), fill);
    for (++j; j < stop; ++j) {
      ptrdiff_t from = p + (a.near ? j : r->offset[j]);
      vec v = NAME(tap_from)(a.jump, a.near && j % 2, edge, row, size, from, fill);
      if (op == MEAN) some += v;
      else NAME(take)(op, v, (ivec){0} + (INT)(tap + j), &some, &which);
    }
    if (op == MEAN) *best += some;
    else NAME(take)(op, some, which, best, at);
  }
}

INLINE void NAME(write_outputs)(T *y, ptrdiff_t step, vec v, ptrdiff_t count) {
  if (step == 1) store_lanes(y, v, count);
  else for (ptrdiff_t i = 0; i < count; ++i) y[i * step] = v[i];
}

INLINE void NAME(write_offsets)(const Pooling *s, char *mask, ivec at, ptrdiff_t count) {
  ptrdiff_t step = s->mask[4] * s->mask_bytes;
  if (step == 1) NAME(store_bytes)(mask, __builtin_convertvector(at, bytes), count);
  else for (ptrdiff_t i = 0; i < count; ++i) NAME(store_one)(s, at[i], mask + i * step);
}

// The last row in which a vector that starts at place p and reads `reach` places may be read whole: lanes of
// no output may read what lies behind a row, as far as x goes. `inside`: those of outputs lie inside of rows.
INLINE ptrdiff_t NAME(last_whole)(const Pooling *s, const Rows *r, ptrdiff_t p, ptrdiff_t reach, int inside) {
  if (p < 0 || !inside) return -1;
  if (p + reach <= r->size) return s->size[1] - 1;
  return r->row == r->size ? s->size[1] - (p + reach + r->row - 1) / r->row : -1;
}

// A vector of each row of outputs from oh to end, in slice od, from output q on. x is row 0 of the slice that
// the first tap reads.
INLINE void NAME(column)(int op, Taps a, const Pooling *s, const Rows *r, ptrdiff_t od, ptrdiff_t oh,
                         ptrdiff_t end, ptrdiff_t q, const T *x, const double *shares, T *y, char *mask) {
  Range d = taps_inside(s, 0, od);
  ptrdiff_t count = least(VL, s->out[2] - q), p = q * a.jump + r->start, size = r->size;
  ptrdiff_t last = a.near ? a.count - 1 : r->offset[a.count - 1];
  ptrdiff_t reach = a.jump * VL + (a.near ? last / 2 * 2 : last);
  ptrdiff_t whole = NAME(last_whole)(s, r, p, reach, p + (count - 1) * a.jump + last < size);
  ptrdiff_t row_step = s->dilation[1] * r->row;
  ivec first = *(const ivec *)(r->first + q);
  vec share = {0};
  double shared = 0;
  x += d.begin * r->slice;
  y += od * s->y[2] + q * s->y[4];
  mask += (od * s->mask[2] + q * s->mask[4]) * s->mask_bytes;
  for (; oh < end; ++oh) {
    Range h = taps_inside(s, 1, oh);
    const T *slice = x + place(s, 1, oh, h.begin) * r->row;
    int edge = place(s, 1, oh, h.end - 1) > whole;
    vec best = (vec){0} + (op == MEAN ? 0 : LOWEST);
    ivec at = first + (INT)((d.begin * s->kernel[1] + h.begin) * a.count);
    for (ptrdiff_t jd = d.begin; jd < d.end; ++jd, slice += r->slice) {
      const T *row = slice;
      INT tap = (INT)((jd * s->kernel[1] + h.begin) * a.count);
      for (ptrdiff_t jh = h.begin; jh < h.end; ++jh, row += row_step, tap += (INT)a.count) {
        if (edge) NAME(take_row)(op, a, 1, r, row, size, p, tap, &best, &at);
        else NAME(take_row)(op, a, 0, r, row, size, p, tap, &best, &at);
      }
    }
    if (op == MEAN && row_share(s, shares, od, oh) != shared) {
      shared = row_share(s, shares, od, oh);
      for (ptrdiff_t i = 0; i < count; ++i) share[i] = (T)(shared * shares[s->out[0] + s->out[1] + q + i]);
    }
    if (op == MEAN) best *= share;
    NAME(write_outputs)(y + oh * s->y[3], s->y[4], best, count);
    if (op == MAX_AND_MASK) NAME(write_offsets)(s, mask + oh * s->mask[3] * s->mask_bytes, at, count);
  }
}

// One plane (or volume). A row's last vector overlaps the one before it, if there is one.
INLINE void NAME(rows_by)(int op, Taps a, const Pooling *s, const Rows *r, const T *x, const double *shares,
                          T *y, char *mask) {
  for (ptrdiff_t od = 0; od < s->out[0]; ++od) {
    for (ptrdiff_t oh = 0; oh < s->out[1]; oh += r->block) {
      ptrdiff_t end = least(s->out[1], oh + r->block);
      const T *from = x + place(s, 0, od, 0) * s->x[2];
      if (r->memory) {
        Range d = taps_inside(s, 0, od);
        ptrdiff_t low = most(0, place(s, 1, oh, 0));
        ptrdiff_t high = least(s->size[1], place(s, 1, end - 1, s->kernel[1] - 1) + 1);
        for (ptrdiff_t jd = d.begin; jd < d.end; ++jd)
          for (ptrdiff_t h = low; h < high; ++h)
            NAME(lay_row)(s, r, from + jd * s->dilation[0] * s->x[2] + h * s->x[3], op == MEAN ? 0 : LOWEST,
                          r->memory + jd * r->slice + (h - low) * r->row);
        from = r->memory - low * r->row;
      }
      for (ptrdiff_t q = 0; q < s->out[2]; q += VL)
        NAME(column)(op, a, s, r, od, oh, end, most(0, least(q, s->out[2] - VL)), from, shares, y, mask);
    }
  }
}

INLINE void NAME(rows)(int op, const Pooling *s, const Rows *r, const T *x, const double *shares, T *y,
                       char *mask) {
  ptrdiff_t kw = s->kernel[2], jump = r->memory ? 1 : s->stride[2], near = jump == 2 && s->dilation[2] == 1;
  if (near && kw == 2) NAME(rows_by)(op, (Taps){2, 1, 2}, s, r, x, shares, y, mask);
  else if (near && kw == 3) NAME(rows_by)(op, (Taps){2, 1, 3}, s, r, x, shares, y, mask);
  else if (jump == 2) NAME(rows_by)(op, (Taps){2, 0, kw}, s, r, x, shares, y, mask);
  else NAME(rows_by)(op, (Taps){1, 0, kw}, s, r, x, shares, y, mask);
}
