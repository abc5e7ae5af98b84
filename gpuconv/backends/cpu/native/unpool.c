// Max unpooling and its gradient. As in a pooling, x is the image, and y what its windows have.
//
//     x[place(o, mask[o])] = y[o]         0 elsewhere; of windows that name one place the last stays
//     dy[o] = dx[place(o, mask[o])]       or 0, where a later window wrote there
//
// Other windows that have tap t's place, each with a tap of its own, are t's rivals, alike for all windows.

EXPORT void NAME(max_unpool)(const Pooling *s, const T *y, const char *mask, T *x, T *memory) {
  NAME(scatter_images)(WRITE, s, y, mask, x, memory);
}

typedef struct {
  ptrdiff_t later[3], tap, far;  // windows on from this one; the tap; bytes on from this one's mask
} NAME(Rival);

// The tap along an axis with which the window `later` ones on has the place of tap j; -1 where it hasn't.
INLINE ptrdiff_t NAME(same_place)(const Pooling *s, int axis, ptrdiff_t j, ptrdiff_t later) {
  ptrdiff_t way = later * s->stride[axis], tap = j - way / s->dilation[axis];
  return way % s->dilation[axis] || tap < 0 || tap >= s->kernel[axis] ? -1 : tap;
}

// Note a tap's rivals among later windows; return how many they are.
INLINE ptrdiff_t NAME(find_rivals)(const Pooling *s, const ptrdiff_t *j, NAME(Rival) *rivals) {
  ptrdiff_t most[3], found = 0, i[3];
  for (int axis = 0; axis < 3; ++axis) most[axis] = (span_of(s, axis) - 1) / s->stride[axis];
  for (i[0] = 0; i[0] <= most[0]; ++i[0])
    for (i[1] = i[0] ? -most[1] : 0; i[1] <= most[1]; ++i[1])
      for (i[2] = i[0] || i[1] ? -most[2] : 1; i[2] <= most[2]; ++i[2]) {
        ptrdiff_t d = NAME(same_place)(s, 0, j[0], i[0]), h = NAME(same_place)(s, 1, j[1], i[1]);
        ptrdiff_t w = NAME(same_place)(s, 2, j[2], i[2]);
        if (d < 0 || h < 0 || w < 0) continue;
        rivals[found++] = (NAME(Rival)){
            {i[0], i[1], i[2]},
            (d * s->kernel[1] + h) * s->kernel[2] + w,
            (i[0] * s->mask[2] + i[1] * s->mask[3] + i[2] * s->mask[4]) * s->mask_bytes};
      }
  return found;
}

typedef struct {
  const ptrdiff_t *of;  // tap t's are from of[t] to of[t + 1]; null where windows share no places
  const NAME(Rival) *all;
} NAME(Rivals);

// memory is what `distances` takes, then a number more than there are taps, then all rivals.
INLINE NAME(Rivals) NAME(rivals_of)(const Pooling *s, ptrdiff_t *memory) {
  ptrdiff_t taps = s->kernel[0] * s->kernel[1] * s->kernel[2], tap = 0, j[3], shared = 0;
  for (int axis = 0; axis < 3; ++axis) shared |= span_of(s, axis) > s->stride[axis];
  if (!shared) return (NAME(Rivals)){0, 0};
  ptrdiff_t *of = memory + taps;
  NAME(Rival) *all = (NAME(Rival) *)(of + taps + 1);
  of[0] = 0;
  for (j[0] = 0; j[0] < s->kernel[0]; ++j[0])
    for (j[1] = 0; j[1] < s->kernel[1]; ++j[1])
      for (j[2] = 0; j[2] < s->kernel[2]; ++j[2], ++tap)
        of[tap + 1] = of[tap] + NAME(find_rivals)(s, j, all + of[tap]);
  return (NAME(Rivals)){of, all};
}

// Whether a window after o, whose mask this is, wrote to the place that o's tap names.
INLINE int NAME(is_overwritten)(const Pooling *s, const NAME(Rivals) *rivals, const ptrdiff_t *o,
                                const char *mask) {
  long long tap = NAME(load_one)(s, mask);
  int wrote = 0;
  for (ptrdiff_t r = rivals->of[tap]; r < rivals->of[tap + 1]; ++r) {
    const NAME(Rival) *other = rivals->all + r;
    // As sizes: windows before the first are beyond all others.
    int exists = (size_t)(o[0] + other->later[0]) < (size_t)s->out[0];
    exists &= (size_t)(o[1] + other->later[1]) < (size_t)s->out[1];
    exists &= (size_t)(o[2] + other->later[2]) < (size_t)s->out[2];
    if (exists) wrote |= NAME(load_one)(s, mask + other->far) == other->tap;
  }
  return wrote;
}

INLINE void NAME(gather_run)(int kind, const Pooling *s, const NAME(Distances) *far, ptrdiff_t count,
                             const T *x, ptrdiff_t jump, const char *mask, ptrdiff_t mask_step, T *y,
                             ptrdiff_t step) {
  for (ptrdiff_t i = 0; i < count; ++i) {
    const T *from = x + i * jump;
    y[i * step] = from[NAME(distance)(kind, s, far, mask + i * mask_step, from)];
  }
}

// Windows from o on, `next` apart, or one's channels; steps as in `scatter`.
INLINE void NAME(gather)(const Pooling *s, const NAME(Distances) *far, const NAME(Rivals) *rivals,
                         ptrdiff_t count, const ptrdiff_t *o, ptrdiff_t next, const T *x, ptrdiff_t jump,
                         const char *mask, ptrdiff_t mask_step, T *y, ptrdiff_t step) {
  if (far->kind == LISTED_BYTES)
    NAME(gather_run)(LISTED_BYTES, s, far, count, x, jump, mask, mask_step, y, step);
  else NAME(gather_run)(ANY, s, far, count, x, jump, mask, mask_step, y, step);
  ptrdiff_t at[3] = {o[0], o[1], o[2]};
  for (ptrdiff_t i = 0; rivals->of && i < count; ++i, at[2] += next, mask += mask_step)
    y[i * step] = NAME(is_overwritten)(s, rivals, at, mask) ? 0 : y[i * step];
}

// Read a row in order, which the processor foresees and fetches ahead, unlike what masks name: 64 planes of
// 224x224 in windows of 2x2 took 2.6 ms, and take 0.9.
INLINE void NAME(touch)(const T *row, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += 64 / (ptrdiff_t)sizeof(T)) (void)*(const volatile T *)(row + i);
}

INLINE void NAME(touch_rows)(const Pooling *s, ptrdiff_t od, ptrdiff_t oh, const T *x) {
  Range d = taps_inside(s, 0, od), h = taps_inside(s, 1, oh);
  if (s->x[4] != 1) return;
  for (ptrdiff_t jd = d.begin; jd < d.end; ++jd)
    for (ptrdiff_t jh = h.begin; jh < h.end; ++jh)
      NAME(touch)(x + place(s, 0, od, jd) * s->x[2] + place(s, 1, oh, jh) * s->x[3], s->size[2]);
}

// All windows of a plane (or volume); of `inner` such, where they lie side by side.
INLINE void NAME(gather_windows)(const Pooling *s, const NAME(Distances) *far, const NAME(Rivals) *rivals,
                                 ptrdiff_t inner, const T *x, const char *mask, T *y) {
  ptrdiff_t each = s->mask_bytes, step = s->mask[4] * each, jump = s->stride[2] * s->x[4], o[3];
  for (o[0] = 0; o[0] < s->out[0]; ++o[0])
    for (o[1] = 0; o[1] < s->out[1]; ++o[1]) {
      const T *from = x + o[0] * s->stride[0] * s->x[2] + o[1] * s->stride[1] * s->x[3];
      const char *names = mask + (o[0] * s->mask[2] + o[1] * s->mask[3]) * each;
      T *row = y + o[0] * s->y[2] + o[1] * s->y[3];
      o[2] = 0;
      if (!inner) NAME(touch_rows)(s, o[0], o[1], x);
      if (!inner) NAME(gather)(s, far, rivals, s->out[2], o, 1, from, jump, names, step, row, s->y[4]);
      else for (; o[2] < s->out[2]; ++o[2], from += jump, names += step, row += s->y[4])
        NAME(gather)(s, far, rivals, inner, o, 0, from, 1, names, each, row, 1);
    }
}

EXPORT void NAME(max_unpool_backward)(const Pooling *s, const T *x, const char *mask, T *y, T *memory) {
  ptrdiff_t inner = NAME(inner_channels)(s);
  NAME(Distances) far = NAME(distances)(s, x, (ptrdiff_t *)memory);
  NAME(Rivals) rivals = NAME(rivals_of)(s, (ptrdiff_t *)memory);
  for (ptrdiff_t n = 0; n < s->images; ++n)
    for (ptrdiff_t c = 0; c < s->channels; c += inner ? inner : 1)
      NAME(gather_windows)(s, &far, &rivals, inner, x + n * s->x[0] + c * s->x[1],
                           mask + (n * s->mask[0] + c * s->mask[1]) * s->mask_bytes,
                           y + n * s->y[0] + c * s->y[1]);
}
