// Pooling with vectors of channels, which lie side by side (channels last); at least VL of them.
//
//     y[n, o, c] = max or mean over taps t of  x[n, o * stride - before + t * dilation, c]
//
// A window's sums or maxima stay in registers, for up to eight vectors of channels at once: so much of a
// place is long enough for the cache to foresee the rest. The last vector may overlap the one before it, and
// give its results again.

INLINE void NAME(window_channels)(int op, int v, const Pooling *s, const ptrdiff_t *o, const Range *taps,
                                  const T *x, T share, T *y, char *mask) {
  vec best[8];
  ivec at[8];
  ptrdiff_t first = (taps[0].begin * s->kernel[1] + taps[1].begin) * s->kernel[2] + taps[2].begin;
  UNROLL for (int i = 0; i < v; ++i) {
    best[i] = (vec){0} + (op == MEAN ? 0 : LOWEST);
    at[i] = (ivec){0} + (INT)first;
  }
  for (ptrdiff_t jd = taps[0].begin; jd < taps[0].end; ++jd) {
    for (ptrdiff_t jh = taps[1].begin; jh < taps[1].end; ++jh) {
      ptrdiff_t step = s->dilation[2] * s->x[4], j = taps[2].begin;
      ptrdiff_t tap = (jd * s->kernel[1] + jh) * s->kernel[2];
      const T *from = x + place(s, 0, o[0], jd) * s->x[2] + place(s, 1, o[1], jh) * s->x[3] +
                      place(s, 2, o[2], j) * s->x[4];
      while (j < taps[2].end) {
        ptrdiff_t stop = op == MEAN ? least(taps[2].end, j + MANY) : taps[2].end;
        vec sum[8];
        if (op == MEAN) UNROLL for (int i = 0; i < v; ++i) sum[i] = (vec){0};
        for (; j < stop; ++j, from += step) {
          UNROLL for (int i = 0; i < v; ++i) {
            if (op == MEAN) sum[i] += load(from + i * VL);
            else NAME(take)(op, load(from + i * VL), (ivec){0} + (INT)(tap + j), best + i, at + i);
          }
        }
        if (op == MEAN) UNROLL for (int i = 0; i < v; ++i) best[i] += sum[i];
      }
    }
  }
  UNROLL for (int i = 0; i < v; ++i) {
    if (op == MEAN) best[i] *= share;
    store(y + i * VL, best[i]);
    if (op == MAX_AND_MASK) NAME(store_mask)(s, at[i], mask + i * VL * s->mask_bytes);
  }
}

// One window's channels: v vectors, or, where v is 0, eight at a time, then four, then single ones.
INLINE void NAME(all_channels)(int op, int v, const Pooling *s, const ptrdiff_t *o, const Range *taps,
                               const T *x, T share, T *y, char *mask) {
  ptrdiff_t c = 0, each = op == MAX_AND_MASK ? s->mask_bytes : 0;
  if (v) {
    NAME(window_channels)(op, v, s, o, taps, x, share, y, mask);
    return;
  }
  for (; c + 8 * VL <= s->channels; c += 8 * VL)
    NAME(window_channels)(op, 8, s, o, taps, x + c, share, y + c, mask + c * each);
  for (; c + 4 * VL <= s->channels; c += 4 * VL)
    NAME(window_channels)(op, 4, s, o, taps, x + c, share, y + c, mask + c * each);
  for (; c < s->channels; c += VL) {
    ptrdiff_t from = least(c, s->channels - VL);
    NAME(window_channels)(op, 1, s, o, taps, x + from, share, y + from, mask + from * each);
  }
}

INLINE void NAME(channels_by)(int op, int v, const Pooling *s, const T *x, const double *shares, T *y,
                              char *mask) {
  ptrdiff_t o[3], each = op == MAX_AND_MASK ? s->mask_bytes : 0;
  Range taps[3];
  for (o[0] = 0; o[0] < s->out[0]; ++o[0]) {
    taps[0] = taps_inside(s, 0, o[0]);
    for (o[1] = 0; o[1] < s->out[1]; ++o[1]) {
      taps[1] = taps_inside(s, 1, o[1]);
      for (o[2] = 0; o[2] < s->out[2]; ++o[2]) {
        taps[2] = taps_inside(s, 2, o[2]);
        T share = op == MEAN ? (T)share_of(s, shares, o[0], o[1], o[2]) : 1;
        ptrdiff_t at = o[0] * s->mask[2] + o[1] * s->mask[3] + o[2] * s->mask[4];
        NAME(all_channels)(op, v, s, o, taps, x, share, y + o[0] * s->y[2] + o[1] * s->y[3] + o[2] * s->y[4],
                           mask + at * each);
      }
    }
  }
}

// A constant number of vectors leaves less to do at each window.
INLINE void NAME(channels)(int op, const Pooling *s, const T *x, const double *shares, T *y, char *mask) {
  if (s->channels == VL) NAME(channels_by)(op, 1, s, x, shares, y, mask);
  else if (s->channels == 4 * VL) NAME(channels_by)(op, 4, s, x, shares, y, mask);
  else NAME(channels_by)(op, 0, s, x, shares, y, mask);
}
