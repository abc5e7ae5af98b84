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
// Padding is -infinity, which wins over nothing, or 0; rows of padding are left out.

// How a row is read. `near`: few taps, side by side; the compiler is told how many.
#define Taps NAME(Taps)
typedef struct {
  int jump, near;
  ptrdiff_t count;
} Taps;

#define Rows NAME(Rows)
typedef struct {
  ptrdiff_t start, size;          // output 0's first place in a row, and a row's places
  ptrdiff_t row, tap_row, slice;  // elements from row to row, from a tap's row and slice to the next one's
  ptrdiff_t block;                // rows of outputs at a time
  ptrdiff_t pitch, phases, laid;  // elements of a laid phase, phases, laid rows of a slice
  ptrdiff_t *offset;              // each tap's place beside the window's first
  INT *first;                     // each output's first tap that is inside of the row
  T *memory;                      // for laid rows; null where x is read as it lies
} Rows;

#define LAID_BLOCK 8
#define BLOCK_BYTES 2048  // of rows whose vectors are taken one below the other, before those beside them

// memory is a word for each tap of a row, a row of outputs, and, where rows are laid, [kernel d][laid][row].
INLINE Rows NAME(rows_of)(const Pooling *s, T *memory) {
  Rows r = {.start = -s->before[2], .size = s->size[2], .row = s->x[3]};
  r.slice = s->dilation[0] * s->x[2], r.tap_row = s->dilation[1] * s->x[3];
  ptrdiff_t width = s->out[2] + VL;
  r.offset = (ptrdiff_t *)memory;
  r.first = (INT *)(r.offset + s->kernel[2]);
  for (ptrdiff_t j = 0; j < s->kernel[2]; ++j) r.offset[j] = j * s->dilation[2];
  for (ptrdiff_t q = 0; q < width; ++q) r.first[q] = q < s->out[2] ? (INT)taps_inside(s, 2, q).begin : 0;
  r.block = most(1, BLOCK_BYTES / (s->stride[1] * s->size[2] * (ptrdiff_t)sizeof(T)));
  if (s->x[4] == 1 && s->stride[2] <= 2) return r;
  r.memory = (T *)(r.first + width);
  r.pitch = s->out[2] + (span_of(s, 2) - 1) / s->stride[2] + VL;
  r.phases = least(s->stride[2], span_of(s, 2));
  r.block = LAID_BLOCK;
  r.laid = least(s->size[1], span_of(s, 1) + (r.block - 1) * s->stride[1]);
  r.start = 0, r.size = r.row = r.pitch * r.phases, r.slice = r.laid * r.row;
  r.tap_row = s->dilation[1] * r.row;
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

// A vector of outputs whose first reads from place p of rows on. x is row 0 of the slice that the first tap
// reads; `taps` are those that the outputs have inside of x along d and h, `first` along w.
INLINE vec NAME(outputs_from)(int op, Taps a, int edge, const Pooling *s, const Rows *r, const Range *taps,
                              ivec first, const T *x, ptrdiff_t p, ivec *at) {
  vec best = (vec){0} + (op == MEAN ? 0 : LOWEST);
  *at = first + (INT)((taps[0].begin * s->kernel[1] + taps[1].begin) * a.count);
  for (ptrdiff_t jd = taps[0].begin; jd < taps[0].end; ++jd) {
    const T *row = x + jd * r->slice + taps[1].begin * r->tap_row;
    INT tap = (INT)((jd * s->kernel[1] + taps[1].begin) * a.count);
    for (ptrdiff_t jh = taps[1].begin; jh < taps[1].end; ++jh, row += r->tap_row, tap += (INT)a.count)
      NAME(take_row)(op, a, edge, r, row, r->size, p, tap, &best, at);
  }
  return best;
}

// Write `count` outputs, and where their maxima are.
INLINE void NAME(write_outputs)(int op, const Pooling *s, vec v, ivec at, ptrdiff_t count, T *y, char *mask) {
  ptrdiff_t each = s->mask[4] * s->mask_bytes;
  if (s->y[4] == 1) store_lanes(y, v, count);
  else for (ptrdiff_t i = 0; i < count; ++i) y[i * s->y[4]] = v[i];
  if (op != MAX_AND_MASK) return;
  if (each == 1) NAME(store_bytes)(mask, __builtin_convertvector(at, bytes), count);
  else for (ptrdiff_t i = 0; i < count; ++i) NAME(store_one)(s, at[i], mask + i * each);
}

// Windows' shares of a row of outputs, `count` of them.
INLINE vec NAME(row_shares)(const Pooling *s, const double *shares, double shared, ptrdiff_t q,
                            ptrdiff_t count) {
  vec share = {0};
  for (ptrdiff_t i = 0; i < count; ++i) share[i] = (T)(shared * shares[s->out[0] + s->out[1] + q + i]);
  return share;
}

// A vector of outputs, from output q on, of each row from o[1] to end.
INLINE void NAME(column)(int op, Taps a, int edge, const Pooling *s, const Rows *r, const ptrdiff_t *o,
                         ptrdiff_t end, ptrdiff_t q, const T *x, const double *shares, T *y, char *mask) {
  Range taps[2] = {taps_inside(s, 0, o[0])};
  ptrdiff_t count = least(VL, s->out[2] - q), p = q * a.jump + r->start;
  ivec at, first = *(const ivec *)(r->first + q);
  vec share = {0};
  double shared = 0;
  y += o[0] * s->y[2] + q * s->y[4];
  mask += (o[0] * s->mask[2] + q * s->mask[4]) * s->mask_bytes;
  for (ptrdiff_t oh = o[1]; oh < end; ++oh) {
    taps[1] = taps_inside(s, 1, oh);
    vec v = NAME(outputs_from)(op, a, edge, s, r, taps, first, x + place(s, 1, oh, 0) * r->row, p, &at);
    if (op == MEAN && row_share(s, shares, o[0], oh) != shared) {
      shared = row_share(s, shares, o[0], oh);
      share = NAME(row_shares)(s, shares, shared, q, count);
    }
    if (op == MEAN) v *= share;
    NAME(write_outputs)(op, s, v, at, count, y + oh * s->y[3], mask + oh * s->mask[3] * s->mask_bytes);
  }
}

// Vectors of outputs of one row, from output q to q_end, whose windows lie inside of rows of x: all have the
// same share. What the row of outputs below will read is asked for in the order in which it lies in memory: a
// window's rows, read side by side, are nothing that a processor foresees (512 x 512: 75 ms, so 26).
INLINE void NAME(run)(int op, Taps a, const Pooling *s, const Rows *r, const ptrdiff_t *o, ptrdiff_t q,
                      ptrdiff_t q_end, const T *x, const double *shares, T *y, char *mask) {
  Range taps[2] = {taps_inside(s, 0, o[0]), taps_inside(s, 1, o[1])};
  vec share = {0};
  ivec at;
  if (op == MEAN) share = NAME(row_shares)(s, shares, row_share(s, shares, o[0], o[1]), q, VL);
  x += place(s, 1, o[1], 0) * r->row;
  const T *ahead = x + taps[1].begin * r->tap_row + s->stride[1] * r->row;
  ptrdiff_t more = least(s->stride[1], s->kernel[1]) * r->row;
  ptrdiff_t lines = r->row == s->size[2] ? (more - 1) / (q_end - q) + 1 : 0;
  y += o[0] * s->y[2] + o[1] * s->y[3];
  mask += (o[0] * s->mask[2] + o[1] * s->mask[3]) * s->mask_bytes;
  for (; q < q_end; q += VL) {
    for (ptrdiff_t line = 0; line < lines; ++line, ahead += VL) __builtin_prefetch(ahead);
    vec v = NAME(outputs_from)(op, a, 0, s, r, taps, (ivec){0}, x, q * a.jump + r->start, &at);
    if (op == MEAN) v *= share;
    NAME(write_outputs)(op, s, v, at, VL, y + q * s->y[4], mask + q * s->mask[4] * s->mask_bytes);
  }
}

// How far from output 0's first place a vector's last load ends.
INLINE ptrdiff_t NAME(reach)(Taps a, const Rows *r) {
  return a.jump * VL + (a.near ? (a.count - 1) / 2 * 2 : r->offset[a.count - 1]);
}

// Of rows of outputs from oh to end, the first whose vectors of `count` outputs, which read from place p on,
// must not read whole vectors: lanes of no output may read what lies behind a row, as far as x goes.
INLINE ptrdiff_t NAME(first_edge)(Taps a, const Pooling *s, const Rows *r, ptrdiff_t oh, ptrdiff_t end,
                                  ptrdiff_t p, ptrdiff_t count) {
  ptrdiff_t stop = p + NAME(reach)(a, r), needed = p + (count - 1) * a.jump + r->offset[a.count - 1] + 1;
  if (p < 0 || needed > r->size) return oh;
  if (stop <= r->size) return end;
  if (r->row != r->size) return oh;
  ptrdiff_t rows = s->size[1] - (stop - 1) / r->row + s->before[1] - span_of(s, 1);  // that a window may move
  return rows < 0 ? oh : most(oh, least(end, rows / s->stride[1] + 1));
}

// Lay out what rows of outputs from oh to oh_end read; x is the slice that the first tap reads.
INLINE const T *NAME(lay_rows)(int op, const Pooling *s, const Rows *r, ptrdiff_t od, ptrdiff_t oh,
                               ptrdiff_t oh_end, const T *x) {
  Range d = taps_inside(s, 0, od);
  ptrdiff_t low = most(0, place(s, 1, oh, 0));
  ptrdiff_t high = least(s->size[1], place(s, 1, oh_end - 1, s->kernel[1] - 1) + 1);
  for (ptrdiff_t jd = d.begin; jd < d.end; ++jd)
    for (ptrdiff_t h = low; h < high; ++h)
      NAME(lay_row)(s, r, x + jd * s->dilation[0] * s->x[2] + h * s->x[3], op == MEAN ? 0 : LOWEST,
                    r->memory + jd * r->slice + (h - low) * r->row);
  return r->memory - low * r->row;
}

// One plane (or volume). A row's last vector overlaps the one before it, if there is one.
INLINE void NAME(rows_by)(int op, Taps a, const Pooling *s, const Rows *r, const T *x, const double *shares,
                          T *y, char *mask) {
  for (ptrdiff_t od = 0; od < s->out[0]; ++od) {
    for (ptrdiff_t oh = 0, end; oh < s->out[1]; oh = end) {
      end = least(s->out[1], oh + r->block);
      const T *from = x + place(s, 0, od, 0) * s->x[2];
      if (r->memory) from = NAME(lay_rows)(op, s, r, od, oh, end, from);
      for (ptrdiff_t q = 0, next; q < s->out[2]; q = next) {
        q = most(0, least(q, s->out[2] - VL));
        ptrdiff_t p = q * a.jump + r->start, room = r->size - p - NAME(reach)(a, r);
        next = q + VL;
        if (!r->memory && p >= 0 && room >= a.jump * VL && s->out[2] - q >= 2 * VL) {
          next = q + least(room / (a.jump * VL) + 1, (s->out[2] - q) / VL) * VL;
          for (ptrdiff_t o[2] = {od, oh}; o[1] < end; ++o[1])
            NAME(run)(op, a, s, r, o, q, next, from, shares, y, mask);
          continue;
        }
        ptrdiff_t edge = NAME(first_edge)(a, s, r, oh, end, p, least(VL, s->out[2] - q));
        ptrdiff_t inside[2] = {od, oh}, at_edge[2] = {od, edge};
        if (edge > oh) NAME(column)(op, a, 0, s, r, inside, edge, q, from, shares, y, mask);
        if (edge < end) NAME(column)(op, a, 1, s, r, at_edge, end, q, from, shares, y, mask);
      }
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
