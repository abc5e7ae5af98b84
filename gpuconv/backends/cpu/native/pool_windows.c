// Pooling with vectors of a window's own places along w: for wide windows with few outputs beside each other.
//
//     y[o] = max or sum over lanes of (max or sum over the places that a lane has seen)

// Load `count` places, at most VL of them; lanes beyond are `fill`.
INLINE vec NAME(load_places)(const T *from, ptrdiff_t step, ptrdiff_t count, T fill) {
  if (step == 1 && count >= VL) return load(from);
  T tile[VECTOR_BYTES / sizeof(T)];
  for (ptrdiff_t i = 0; i < VL; ++i) tile[i] = fill;
  for (ptrdiff_t i = 0; i < least(count, VL); ++i) tile[i] = from[i * step];
  return load(tile);
}

// Of all lanes' maxima, the first place's: NaN before numbers, then the greatest.
INLINE T NAME(first_of_lanes)(vec best, ivec at, INT *tap) {
  T value = best[0];
  INT found = at[0];
  for (int i = 1; i < VL; ++i) {
    T v = best[i];
    int same = v == value || (v != v && value != value);
    if ((!(v <= value) && value == value) || (same && at[i] < found)) value = v, found = at[i];
  }
  *tap = found;
  return value;
}

INLINE T NAME(window_places)(int op, const Pooling *s, const ptrdiff_t *o, const T *x, INT *tap) {
  Range d = taps_inside(s, 0, o[0]), h = taps_inside(s, 1, o[1]), w = taps_inside(s, 2, o[2]);
  ptrdiff_t step = s->dilation[2] * s->x[4], kh = s->kernel[1], kw = s->kernel[2];
  vec best = (vec){0} + (op == MEAN ? 0 : LOWEST);
  ivec at = (ivec){0} + (INT)((d.begin * kh + h.begin) * kw + w.begin), lane;
  for (int i = 0; i < VL; ++i) lane[i] = i;
  for (ptrdiff_t jd = d.begin; jd < d.end; ++jd) {
    for (ptrdiff_t jh = h.begin; jh < h.end; ++jh) {
      const T *row = x + place(s, 0, o[0], jd) * s->x[2] + place(s, 1, o[1], jh) * s->x[3] +
                     place(s, 2, o[2], 0) * s->x[4];
      for (ptrdiff_t j = w.begin; j < w.end;) {
        ptrdiff_t stop = least(w.end, j + MANY * VL);
        vec sum = {0};
        for (; j < stop; j += VL) {
          vec v = NAME(load_places)(row + j * step, step, stop - j, op == MEAN ? 0 : LOWEST);
          if (op == MEAN) sum += v;
          else NAME(take)(op, v, lane + (INT)((jd * kh + jh) * kw + j), &best, &at);
        }
        if (op == MEAN) best += sum;
      }
    }
  }
  if (op == MEAN) {
    vec sums[VECTOR_BYTES / sizeof(T)] = {best};
    NAME(sum_lanes)(sums, 1);
    return sums[0][0];
  }
  return NAME(first_of_lanes)(best, at, tap);
}

// One plane (or volume).
INLINE void NAME(windows)(int op, const Pooling *s, const T *x, const double *shares, T *y, char *mask) {
  ptrdiff_t o[3];
  for (o[0] = 0; o[0] < s->out[0]; ++o[0]) {
    for (o[1] = 0; o[1] < s->out[1]; ++o[1]) {
      for (o[2] = 0; o[2] < s->out[2]; ++o[2]) {
        INT tap = 0;
        T value = NAME(window_places)(op, s, o, x, &tap);
        if (op == MEAN) value *= (T)share_of(s, shares, o[0], o[1], o[2]);
        y[o[0] * s->y[2] + o[1] * s->y[3] + o[2] * s->y[4]] = value;
        if (op == MAX_AND_MASK)
          NAME(store_one)(s, tap, mask + (o[0] * s->mask[2] + o[1] * s->mask[3] + o[2] * s->mask[4]) *
                                             s->mask_bytes);
      }
    }
  }
}
