// Gradients of poolings with vectors of places of dx along a row: each gathers from the windows that have it.
//
// Rows of dy (times their shares of a mean) and of masks are laid out with padding, dy 0 and mask -1. Places
// that have the same residue by the stride, w = m * stride + phase - before, are read by the same taps:
//
//     dx[.., w] = sum over rows of dy, and taps j with (j * dilation) % stride == phase, of
//                     dy[.., m - (j * dilation) / stride]  where the mask names (jd, jh, j); for a mean, all
//
// A laid row is kept for all rows of dx that its windows have.

typedef struct {
  ptrdiff_t lead, last, pitch;  // padding before a row; the last m; elements of a laid row
  ptrdiff_t kept[2];            // windows that share a place, along d and h
} NAME(Laid);

INLINE NAME(Laid) NAME(laid_of)(const Pooling *s) {
  NAME(Laid) r;
  r.lead = (span_of(s, 2) - 1) / s->stride[2];
  r.last = (s->size[2] - 1 + s->before[2]) / s->stride[2];
  r.pitch = r.lead + r.last + 1 + VL;
  for (int axis = 0; axis < 2; ++axis) r.kept[axis] = (span_of(s, axis) - 1) / s->stride[axis] + 1;
  return r;
}

INLINE void NAME(lay_gradient)(int op, const Pooling *s, NAME(Laid) r, const T *y, const double *shares,
                               double shared, const char *mask, T *to, INT *at) {
  ptrdiff_t count = least(s->out[2], r.pitch - r.lead), step = s->y[4];
  for (ptrdiff_t p = 0; p < r.lead; ++p) to[p] = 0;
  for (ptrdiff_t p = r.lead + count; p < r.pitch; ++p) to[p] = 0;
  to += r.lead;
  if (op == MEAN) {
    for (ptrdiff_t o = 0; o < count; ++o) to[o] = y[o * step] * (T)(shared * shares[o]);
    return;
  }
  if (step == 1) for (ptrdiff_t o = 0; o < count; ++o) to[o] = y[o];
  else for (ptrdiff_t o = 0; o < count; ++o) to[o] = y[o * step];
  for (ptrdiff_t p = 0; p < r.lead; ++p) at[p] = -1;
  for (ptrdiff_t p = r.lead + count; p < r.pitch; ++p) at[p] = -1;
  at += r.lead;
  if (s->mask_bytes == 1 && s->mask[4] == 1)
    for (ptrdiff_t o = 0; o < count; ++o) at[o] = ((const unsigned char *)mask)[o];
  else
    for (ptrdiff_t o = 0; o < count; ++o)
      at[o] = (INT)NAME(load_one)(s, mask + o * s->mask[4] * s->mask_bytes);
}

// Sum what the places of one phase get: taps j, j + step, .. of all rows; `shift` is j's, and grows by `far`.
INLINE void NAME(phase_places)(int op, const Pooling *s, NAME(Laid) r, ptrdiff_t number, const T *const *rows,
                               const INT *const *masks, const ptrdiff_t *tap, ptrdiff_t j0, ptrdiff_t step,
                               T *result) {
  for (ptrdiff_t m = 0; m <= r.last; m += VL) {
    vec sum = {0};
    for (ptrdiff_t k = 0; k < number; ++k) {
      for (ptrdiff_t j = j0; j < s->kernel[2]; j += step) {
        ptrdiff_t p = m + r.lead - j * s->dilation[2] / s->stride[2];
        vec v = load(rows[k] + p);
        if (op == MEAN) sum += v;
        else sum += (vec)((ivec)(*(const ivec *)(masks[k] + p) == (ivec){0} + (INT)(tap[k] + j)) & (ivec)v);
      }
    }
    store(result + m, sum);
  }
}

// Write places that alternate between two phases.
INLINE void NAME(write_pairs)(const Pooling *s, const T *even, const T *odd, T *x) {
  ptrdiff_t w = 0, m = s->before[2] / 2;
  if (s->before[2] % 2) x[w++] = odd[m++];
  even += m, odd += m, x += w;
  ptrdiff_t count = s->size[2] - w, pairs = count / 2;
  for (ptrdiff_t i = 0; i < pairs; ++i) {
    x[2 * i] = even[i];
    x[2 * i + 1] = odd[i];
  }
  if (count % 2) x[2 * pairs] = even[pairs];
}

// Write places of one phase.
INLINE void NAME(write_phase)(const Pooling *s, ptrdiff_t phase, const T *result, T *x) {
  ptrdiff_t stride = s->stride[2], jump = stride * s->x[4], at = phase - s->before[2];
  ptrdiff_t m = at < 0 ? (-at + stride - 1) / stride : 0;
  T *to = x + (m * stride + at) * s->x[4];
  ptrdiff_t count = (s->size[2] - 1 - at) / stride + 1 - m;
  if (jump == 1) for (ptrdiff_t i = 0; i < count; ++i) to[i] = result[m + i];
  else for (ptrdiff_t i = 0; i < count; ++i) to[i * jump] = result[m + i];
}

// Whether windows of two places tile rows, whose places lie side by side, and no place has two windows: then
// what lanes of dy give goes to the even and odd places of two vectors of dx, and nothing is laid out.
INLINE int NAME(are_pairs)(int op, const Pooling *s) {
  int tiles = s->kernel[2] == 2 && s->stride[2] == 2 && s->dilation[2] == 1 && !s->before[2] &&
              2 * s->out[2] <= s->size[2];
  int dense = s->x[4] == 1 && s->y[4] == 1 && (op == MEAN || s->mask[4] * s->mask_bytes == 1);
  return tiles && dense && span_of(s, 0) <= s->stride[0] && span_of(s, 1) <= s->stride[1];
}

// A row of dx from a row of dy, whose windows have the same share; `tap` is the number of its first tap.
INLINE void NAME(pairs_row)(int op, const Pooling *s, const T *y, T share, const char *mask, INT tap, T *x) {
  ptrdiff_t width = s->out[2], count = least(VL, width);
  for (ptrdiff_t next = 0; next < width; next += VL) {
    ptrdiff_t q = least(next, width - count);  // the last vector overlaps the one before it
    vec even = load_part(y + q, count) * share, odd = even;
    if (op != MEAN) {
      ivec at = __builtin_convertvector(NAME(load_bytes)(mask + q, count), ivec);
      even = (vec)((ivec)(at == (ivec){0} + tap) & (ivec)even);
      odd = (vec)((ivec)(at == (ivec){0} + (tap + 1)) & (ivec)odd);
    }
    store_lanes(x + 2 * q, NAME(low)(even, odd), least(VL, 2 * count));
    if (2 * count > VL) store_lanes(x + 2 * q + VL, NAME(high)(even, odd), 2 * count - VL);
  }
  for (ptrdiff_t w = 2 * width; w < s->size[2]; ++w) x[w] = 0;
}

// One plane (or volume).
INLINE void NAME(pairs_backward)(int op, const Pooling *s, const T *y, const double *shares, const char *mask,
                                 T *x) {
  for (ptrdiff_t d = 0; d < s->size[0]; ++d) {
    ptrdiff_t od = windows_over(s, 0, d).begin, jd = od < s->out[0] ? tap_at(s, 0, od, d) : -1;
    for (ptrdiff_t h = 0; h < s->size[1]; ++h) {
      ptrdiff_t oh = windows_over(s, 1, h).begin, jh = oh < s->out[1] ? tap_at(s, 1, oh, h) : -1;
      T *row = x + d * s->x[2] + h * s->x[3];
      if (jd < 0 || jh < 0 || jd >= s->kernel[0] || jh >= s->kernel[1])
        for (ptrdiff_t w = 0; w < s->size[2]; ++w) row[w] = 0;
      else
        NAME(pairs_row)(op, s, y + od * s->y[2] + oh * s->y[3],
                        op == MEAN ? (T)share_of(s, shares, od, oh, 0) : 1,
                        mask + (od * s->mask[2] + oh * s->mask[3]) * s->mask_bytes,
                        (INT)((jd * s->kernel[1] + jh) * 2), row);
    }
  }
}

// One plane (or volume); memory is rows' addresses and taps, [kept d][kept h][pitch] of dy and of masks, and
// two rows of dx.
INLINE void NAME(rows_backward)(int op, const Pooling *s, const T *y, const double *shares, const char *mask,
                                T *x, T *memory) {
  NAME(Laid) r = NAME(laid_of)(s);
  ptrdiff_t kept = r.kept[0] * r.kept[1], stride = s->stride[2];
  const T **rows = (const T **)memory;
  const INT **masks = (const INT **)(rows + kept);
  ptrdiff_t *tap = (ptrdiff_t *)(masks + kept);
  T *ring = (T *)(tap + kept), *result = ring + kept * r.pitch, *odd = result + r.last + 1 + VL;
  INT *marks = (INT *)(odd + r.last + 1 + VL);
  for (ptrdiff_t d = 0; d < s->size[0]; ++d) {
    Range slices = windows_over(s, 0, d);
    ptrdiff_t laid = 0;
    for (ptrdiff_t h = 0; h < s->size[1]; ++h) {
      Range lines = windows_over(s, 1, h);
      ptrdiff_t number = 0;
      for (ptrdiff_t od = slices.begin; od < slices.end; ++od) {
        ptrdiff_t jd = tap_at(s, 0, od, d);
        if (jd < 0) continue;
        for (ptrdiff_t oh = lines.begin; oh < lines.end; ++oh) {
          ptrdiff_t slot = (od % r.kept[0] * r.kept[1] + oh % r.kept[1]) * r.pitch, jh = tap_at(s, 1, oh, h);
          if (oh >= laid)
            NAME(lay_gradient)(op, s, r, y + od * s->y[2] + oh * s->y[3], shares + s->out[0] + s->out[1],
                               op == MEAN ? row_share(s, shares, od, oh) : 1,
                               mask + (od * s->mask[2] + oh * s->mask[3]) * s->mask_bytes, ring + slot,
                               marks + slot);
          if (jh < 0) continue;
          rows[number] = ring + slot;
          masks[number] = marks + slot;
          tap[number++] = (jd * s->kernel[1] + jh) * s->kernel[2];
        }
      }
      laid = most(laid, lines.end);
      T *row = x + d * s->x[2] + h * s->x[3];
      for (ptrdiff_t phase = 0; phase < stride && phase - s->before[2] < s->size[2]; ++phase) {
        ptrdiff_t j = 0, step = 1;
        while (j < s->kernel[2] && j * s->dilation[2] % stride != phase) ++j;
        while (step * s->dilation[2] % stride) ++step;
        T *to = phase == 1 && stride == 2 ? odd : result;
        NAME(phase_places)(op, s, r, number, rows, masks, tap, j, step, to);
        if (stride != 2 || s->x[4] != 1) NAME(write_phase)(s, phase, to, row);
      }
      if (stride == 2 && s->x[4] == 1) NAME(write_pairs)(s, result, odd, row);
    }
  }
}
