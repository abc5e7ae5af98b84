// Values that go to the places which masks name, one by one:
//
//     x[place(o, mask[o])] += y[o]        gradients of maxima whose windows share out the image
//     x[place(o, mask[o])]  = y[o]        unpooling; of windows that name one place the last stays
//
// The innermost loop takes what lies side by side: channels, or the windows of a row. Rows of x are zeroed
// just before the first window that has them, and so are in the cache still when they are written to.

enum { ADD, WRITE };

// How far a window's taps are from where its stride has brought it: listed; or an even step apart; or, where
// there are too many to list, worked out. The two kinds that most masks are have loops of their own.
enum { LISTED_BYTES, EVEN_LONGS, ANY };

typedef struct {
  int kind;
  const ptrdiff_t *listed;
  ptrdiff_t first, step;  // 0 where the step isn't even
} NAME(Distances);

INLINE ptrdiff_t NAME(worked_out)(const Pooling *s, unsigned tap, const T *x) {
  ptrdiff_t start[3] = {0, 0, 0};
  return NAME(named_place)(s, start, tap, (T *)x) - x;
}

// `room` is for a list, or null.
INLINE NAME(Distances) NAME(distances)(const Pooling *s, const T *x, ptrdiff_t *room) {
  ptrdiff_t w = s->dilation[2] * s->x[4], h = s->dilation[1] * s->x[3], d = s->dilation[0] * s->x[2];
  int even = (s->kernel[1] == 1 || h == s->kernel[2] * w) &&
             (s->kernel[0] == 1 || d == s->kernel[1] * s->kernel[2] * w);
  NAME(Distances) far = {ANY, room, NAME(worked_out)(s, 0, x), even ? w : 0};
  NAME(find_far)(s, (T *)x, room);
  if (room && s->mask_bytes == 1) far.kind = LISTED_BYTES;
  else if (far.step && s->mask_bytes == 8) far.kind = EVEN_LONGS;
  return far;
}

INLINE ptrdiff_t NAME(distance)(int kind, const Pooling *s, const NAME(Distances) *far, const char *mask,
                                const T *x) {
  if (kind == LISTED_BYTES) return far->listed[*(const unsigned char *)mask];
  if (kind == EVEN_LONGS) return far->first + far->step * (ptrdiff_t)*(const long long *)mask;
  long long tap = NAME(load_one)(s, mask);
  if (far->listed) return far->listed[tap];
  return far->step ? far->first + far->step * (ptrdiff_t)tap : NAME(worked_out)(s, (unsigned)tap, x);
}

INLINE void NAME(scatter_run)(int kind, int op, const Pooling *s, const NAME(Distances) *far, ptrdiff_t count,
                              const T *y, ptrdiff_t step, const char *mask, ptrdiff_t mask_step, T *x,
                              ptrdiff_t jump) {
  for (ptrdiff_t i = 0; i < count; ++i) {
    T *to = x + i * jump, value = y[i * step];
    to += NAME(distance)(kind, s, far, mask + i * mask_step, to);
    *to = op == ADD ? *to + value : value;
  }
}

// Values `step` apart, whose windows are `jump` apart in x; the step of masks is in bytes.
INLINE void NAME(scatter)(int op, const Pooling *s, const NAME(Distances) *far, ptrdiff_t count, const T *y,
                          ptrdiff_t step, const char *mask, ptrdiff_t mask_step, T *x, ptrdiff_t jump) {
  if (far->kind == LISTED_BYTES)
    NAME(scatter_run)(LISTED_BYTES, op, s, far, count, y, step, mask, mask_step, x, jump);
  else if (far->kind == EVEN_LONGS)
    NAME(scatter_run)(EVEN_LONGS, op, s, far, count, y, step, mask, mask_step, x, jump);
  else NAME(scatter_run)(ANY, op, s, far, count, y, step, mask, mask_step, x, jump);
}

// Where the places end that windows up to o have, along an axis; after the last window, the image's end.
INLINE ptrdiff_t NAME(places_end)(const Pooling *s, int axis, ptrdiff_t o) {
  if (o + 1 == s->out[axis]) return s->size[axis];
  return place(s, axis, o, taps_inside(s, axis, o).end - 1) + 1;
}

// Zero rows of some slices: of all channels where they are innermost, else of one.
INLINE void NAME(zero_rows)(const Pooling *s, ptrdiff_t inner, Range d, Range h, T *x) {
  ptrdiff_t width = s->size[2], step = s->x[4];
  if (inner && step == s->channels) inner = width * step, width = 1;
  if (!inner && step == 1) inner = width, width = 1;
  for (ptrdiff_t i = d.begin; i < d.end; ++i)
    for (ptrdiff_t j = h.begin; j < h.end; ++j) {
      T *row = x + i * s->x[2] + j * s->x[3];
      if (inner) for (ptrdiff_t w = 0; w < width; ++w) NAME(fill)(row + w * step, 0, inner);
      else for (ptrdiff_t w = 0; w < width; ++w) row[w * step] = 0;
    }
}

// All windows of a plane (or volume); of `inner` such, where they lie side by side.
INLINE void NAME(scatter_windows)(int op, const Pooling *s, const NAME(Distances) *far, ptrdiff_t inner,
                                  const T *y, const char *mask, T *x) {
  ptrdiff_t each = s->mask_bytes, step = s->mask[4] * each, jump = s->stride[2] * s->x[4];
  Range d = {0, 0};
  for (ptrdiff_t od = 0; od < s->out[0]; ++od) {
    Range h = {0, 0};
    d = (Range){d.end, most(d.end, NAME(places_end)(s, 0, od))};
    for (ptrdiff_t oh = 0; oh < s->out[1]; ++oh) {
      h = (Range){h.end, most(h.end, NAME(places_end)(s, 1, oh))};
      NAME(zero_rows)(s, inner, d, h, x);
      const T *row = y + od * s->y[2] + oh * s->y[3];
      const char *names = mask + (od * s->mask[2] + oh * s->mask[3]) * each;
      T *to = x + od * s->stride[0] * s->x[2] + oh * s->stride[1] * s->x[3];
      if (!inner) NAME(scatter)(op, s, far, s->out[2], row, s->y[4], names, step, to, jump);
      else for (ptrdiff_t ow = 0; ow < s->out[2]; ++ow, row += s->y[4], names += step, to += jump)
        NAME(scatter)(op, s, far, inner, row, 1, names, each, to, 1);
    }
  }
}

// How many channels lie side by side in all arrays; 0 where they don't.
INLINE ptrdiff_t NAME(inner_channels)(const Pooling *s) {
  return s->x[1] == 1 && s->y[1] == 1 && s->mask[1] == 1 ? s->channels : 0;
}

INLINE void NAME(scatter_images)(int op, const Pooling *s, const T *y, const char *mask, T *x, T *memory) {
  // Where windows share out the image, there are too many taps to list.
  NAME(Distances) far = NAME(distances)(s, x, s->stride[2] ? (ptrdiff_t *)memory : 0);
  ptrdiff_t inner = NAME(inner_channels)(s), each = s->mask_bytes;
  for (ptrdiff_t n = 0; n < s->images; ++n)
    for (ptrdiff_t c = 0; c < s->channels; c += inner ? inner : 1)
      NAME(scatter_windows)(op, s, &far, inner, y + n * s->y[0] + c * s->y[1],
                            mask + (n * s->mask[0] + c * s->mask[1]) * each, x + n * s->x[0] + c * s->x[1]);
}
