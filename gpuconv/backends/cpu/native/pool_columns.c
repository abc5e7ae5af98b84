// Pooling with vectors of x's places along w (channels first, windows that share out the image).
//
//     best[i] = max or sum over the window's d and h of x[d, h, i]
//     y[o] = max or mean over the places i of window o along w of best[i]
//
// Rows are joined first, whole vectors at a time: what is left for each output is one row of its window.

// The places from i on of a row, at most VL of them; lanes beyond are not used.
INLINE vec NAME(load_columns)(const Pooling *s, const T *row, ptrdiff_t i) {
  ptrdiff_t count = s->size[2] - i;
  if (s->x[4] == 1 && count < VL) return load_part(row + i, count);
  return NAME(load_places)(row + i * s->x[4], s->x[4], count, 0);
}

// Join the rows that windows (d, h) have; `at` is the tap of a row's first place.
INLINE void NAME(join_rows)(int op, const Pooling *s, ptrdiff_t od, ptrdiff_t oh, const T *x, T *best,
                            INT *at) {
  Range d = taps_inside(s, 0, od), h = taps_inside(s, 1, oh);
  for (ptrdiff_t i = 0; i < s->size[2]; i += VL) {
    vec joined = (vec){0} + (op == MEAN ? 0 : LOWEST);
    ivec tap = (ivec){0} + (INT)((d.begin * s->kernel[1] + h.begin) * s->kernel[2]);
    for (ptrdiff_t jd = d.begin; jd < d.end; ++jd) {
      for (ptrdiff_t jh = h.begin; jh < h.end;) {
        ptrdiff_t stop = op == MEAN ? least(h.end, jh + MANY) : h.end;
        vec sum = {0};
        for (; jh < stop; ++jh) {
          const T *row = x + place(s, 0, od, jd) * s->x[2] + place(s, 1, oh, jh) * s->x[3];
          vec v = NAME(load_columns)(s, row, i);
          if (op == MEAN) sum += v;
          else NAME(take)(op, v, (ivec){0} + (INT)((jd * s->kernel[1] + jh) * s->kernel[2]), &joined, &tap);
        }
        if (op == MEAN) joined += sum;
      }
    }
    store(best + i, joined);
    if (op == MAX_AND_MASK) *(ivec *)(at + i) = tap;
  }
}

INLINE T NAME(sum_places)(const T *best, ptrdiff_t count) {
  T total = 0;
  for (ptrdiff_t i = 0; i < count;) {
    T sum = 0;
    for (ptrdiff_t stop = least(count, i + MANY); i < stop; ++i) sum += best[i];
    total += sum;
  }
  return total;
}

// Of places i the maximum, and the first tap that has it: at[i] + i.
INLINE T NAME(max_places)(int op, const T *best, const INT *at, Range places, INT *tap) {
  T value = best[places.begin];
  INT found = op == MAX_AND_MASK ? at[places.begin] + (INT)places.begin : 0;
  for (ptrdiff_t i = places.begin + 1; i < places.end; ++i) {
    T v = best[i];
    int greater = !(v <= value) & (value == value);
    if (op == MAX_AND_MASK) {
      INT here = at[i] + (INT)i;
      greater |= ((v == value) | ((v != v) & (value != value))) & (here < found);
      found = greater ? here : found;
    }
    value = greater ? v : value;
  }
  *tap = found;
  return value;
}

// One plane (or volume); memory is a row of x and one of taps, each with room for a vector more.
INLINE void NAME(columns)(int op, const Pooling *s, const T *x, const double *shares, T *y, char *mask,
                          T *memory) {
  T *best = memory;
  INT *at = (INT *)(best + s->size[2] + VL), tap;
  for (ptrdiff_t od = 0; od < s->out[0]; ++od) {
    for (ptrdiff_t oh = 0; oh < s->out[1]; ++oh) {
      NAME(join_rows)(op, s, od, oh, x, best, at);
      T *to = y + od * s->y[2] + oh * s->y[3];
      char *names = mask + (od * s->mask[2] + oh * s->mask[3]) * s->mask_bytes;
      for (ptrdiff_t ow = 0; ow < s->out[2]; ++ow) {
        Range places = taps_inside(s, 2, ow);
        if (op == MEAN) {
          T sum = NAME(sum_places)(best + places.begin, places.end - places.begin);
          to[ow * s->y[4]] = sum * (T)share_of(s, shares, od, oh, ow);
          continue;
        }
        to[ow * s->y[4]] = NAME(max_places)(op, best, at, places, &tap);
        if (op == MAX_AND_MASK) NAME(store_one)(s, tap, names + ow * s->mask[4] * s->mask_bytes);
      }
    }
  }
}
