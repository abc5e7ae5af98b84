// Gradients of poolings window by window: dx is zeroed, then each dy added to its place, or to all of them.

// Zero some planes, all as one row where they lie end to end.
INLINE void NAME(zero_planes)(const Pooling *s, ptrdiff_t planes, T *x) {
  ptrdiff_t size[4] = {planes, s->size[0], s->size[1], s->size[2]};
  for (int axis = 2; axis >= 0 && s->x[1 + axis] == size[3] * s->x[4]; --axis) {
    size[3] *= size[axis];
    size[axis] = 1;
  }
  for (ptrdiff_t c = 0; c < size[0]; ++c)
    for (ptrdiff_t d = 0; d < size[1]; ++d)
      for (ptrdiff_t h = 0; h < size[2]; ++h) {
        T *row = x + c * s->x[1] + d * s->x[2] + h * s->x[3];
        if (s->x[4] == 1) for (ptrdiff_t w = 0; w < size[3]; ++w) row[w] = 0;
        else for (ptrdiff_t w = 0; w < size[3]; ++w) row[w * s->x[4]] = 0;
      }
}

INLINE void NAME(spread)(const Pooling *s, const ptrdiff_t *o, T value, T *x) {
  Range d = taps_inside(s, 0, o[0]), h = taps_inside(s, 1, o[1]), w = taps_inside(s, 2, o[2]);
  ptrdiff_t step = s->dilation[2] * s->x[4], count = w.end - w.begin;
  for (ptrdiff_t jd = d.begin; jd < d.end; ++jd) {
    for (ptrdiff_t jh = h.begin; jh < h.end; ++jh) {
      T *row = x + place(s, 0, o[0], jd) * s->x[2] + place(s, 1, o[1], jh) * s->x[3] +
               place(s, 2, o[2], w.begin) * s->x[4];
      if (step == 1) for (ptrdiff_t j = 0; j < count; ++j) row[j] += value;
      else for (ptrdiff_t j = 0; j < count; ++j) row[j * step] += value;
    }
  }
}

INLINE T *NAME(named_place)(const Pooling *s, const ptrdiff_t *o, unsigned tap, T *x) {
  unsigned kh = (unsigned)s->kernel[1], kw = (unsigned)s->kernel[2];
  if (s->kernel[0] * s->kernel[1] == 1)  // no division where a row is all
    return x + place(s, 0, o[0], 0) * s->x[2] + place(s, 1, o[1], 0) * s->x[3] + place(s, 2, o[2], tap) * s->x[4];
  return x + place(s, 0, o[0], tap / (kh * kw)) * s->x[2] + place(s, 1, o[1], tap / kw % kh) * s->x[3] +
         place(s, 2, o[2], tap % kw) * s->x[4];
}

// Add a row of dy to places that start at x, `jump` apart; far[t] is how far from there tap t is.
INLINE void NAME(scatter_row)(const Pooling *s, const T *y, const char *mask, const ptrdiff_t *far, T *x) {
  ptrdiff_t jump = s->stride[2] * s->x[4], step = s->y[4], each = s->mask[4] * s->mask_bytes;
  if (each == 1 && step == 1)
    for (ptrdiff_t o = 0; o < s->out[2]; ++o, x += jump) x[far[((const unsigned char *)mask)[o]]] += y[o];
  else if (s->mask_bytes == 1)
    for (ptrdiff_t o = 0; o < s->out[2]; ++o)
      x[o * jump + far[((const unsigned char *)mask)[o * each]]] += y[o * step];
  else
    for (ptrdiff_t o = 0; o < s->out[2]; ++o)
      x[o * jump + far[NAME(load_one)(s, mask + o * each)]] += y[o * step];
}

// Work out how far from a window's first place each tap is; `far` has room, or is null where taps are too many.
INLINE void NAME(find_far)(const Pooling *s, T *x, ptrdiff_t *far) {
  ptrdiff_t start[3] = {0, 0, 0};
  if (far)
    for (ptrdiff_t tap = 0; tap < s->kernel[0] * s->kernel[1] * s->kernel[2]; ++tap)
      far[tap] = NAME(named_place)(s, start, (unsigned)tap, x) - x;
}

// One plane (or volume) of zeros.
INLINE void NAME(windows_backward)(int op, const Pooling *s, const T *y, const double *shares,
                                   const char *mask, T *x, const ptrdiff_t *far) {
  ptrdiff_t o[3];
  for (o[0] = 0; o[0] < s->out[0]; ++o[0]) {
    for (o[1] = 0; o[1] < s->out[1]; ++o[1]) {
      const T *row = y + o[0] * s->y[2] + o[1] * s->y[3];
      const char *masks = mask + (o[0] * s->mask[2] + o[1] * s->mask[3]) * s->mask_bytes;
      if (op != MEAN && far) {
        NAME(scatter_row)(s, row, masks, far,
                          x + o[0] * s->stride[0] * s->x[2] + o[1] * s->stride[1] * s->x[3]);
        continue;
      }
      for (o[2] = 0; o[2] < s->out[2]; ++o[2]) {
        T value = row[o[2] * s->y[4]];
        const char *at = masks + o[2] * s->mask[4] * s->mask_bytes;
        if (op == MEAN) NAME(spread)(s, o, value * (T)share_of(s, shares, o[0], o[1], o[2]), x);
        else *NAME(named_place)(s, o, (unsigned)NAME(load_one)(s, at), x) += value;
      }
    }
  }
}
