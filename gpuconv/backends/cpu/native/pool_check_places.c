// Whether masks name places of their windows, where these share out the image (adaptive pooling):
//
//     mask[o] = (d * H + h) * W + w   with d, h and w in window o
//
// Masks are read as they lie. Vectors, if the compiler sees them, are of double, whose quotients can be
// rounded down without a division: half a place more is at least 0.5 / W from a whole number of rows, and no
// rounding of a product goes so far.

// Where windows begin and end along an axis, as numbers of double: one after the other.
typedef struct {
  const double *begin, *end;
} NAME(Bounds);

INLINE NAME(Bounds) NAME(bounds)(const Pooling *s, int axis, double *room) {
  double *end = room + s->out[axis];
  for (ptrdiff_t o = 0; o < s->out[axis]; ++o) {
    Range taps = taps_inside(s, axis, o);
    room[o] = (double)taps.begin, end[o] = (double)taps.end;
  }
  return (NAME(Bounds)){room, end};
}

INLINE NAME(Bounds) NAME(bounds_at)(NAME(Bounds) all, ptrdiff_t o) {
  return (NAME(Bounds)){all.begin + o, all.end + o};
}

// `count` masks, `step` bytes apart, whose windows have these d and h; along w they are `alike`, or one after
// the other.
INLINE int NAME(any_outside)(int alike, const Pooling *s, const char *mask, ptrdiff_t count, ptrdiff_t step,
                             NAME(Bounds) d, NAME(Bounds) h, NAME(Bounds) w) {
  enum { TOGETHER = 64 };
  double width = (double)s->size[2], height = (double)s->size[1], all = width * height * (double)s->size[0];
  double row_of = 1 / width, slice_of = 1 / height, places[TOGETHER];
  long long wrong = 0;
  for (ptrdiff_t from = 0; from < count; from += TOGETHER, mask += TOGETHER * step) {
    ptrdiff_t number = least(TOGETHER, count - from);
    if (step == 8 && s->mask_bytes == 8)
      for (ptrdiff_t i = 0; i < number; ++i) places[i] = (double)((const long long *)mask)[i];
    else
      for (ptrdiff_t i = 0; i < number; ++i) places[i] = (double)NAME(load_one)(s, mask + i * step);
    for (ptrdiff_t i = 0; i < number; ++i) {
      ptrdiff_t o = alike ? 0 : from + i;
      double at = places[i] < all ? places[i] : -1;  // what is larger may be no long long
      double row = (double)(long long)((at + 0.5) * row_of), column = at - row * width;
      double slice = (double)(long long)((row + 0.5) * slice_of), line = row - slice * height;
      wrong |= (column < w.begin[o]) | (column >= w.end[o]) | (line < *h.begin) | (line >= *h.end) |
               (slice < *d.begin) | (slice >= *d.end);
    }
  }
  return wrong != 0;
}

// All images; memory is for where windows begin and end.
INLINE int NAME(any_outside_windows)(const Pooling *s, const char *mask, double *memory) {
  NAME(Bounds) d = NAME(bounds)(s, 0, memory), h = NAME(bounds)(s, 1, memory + 2 * s->out[0]);
  NAME(Bounds) w = NAME(bounds)(s, 2, memory + 2 * (s->out[0] + s->out[1]));
  ptrdiff_t inner = s->mask[1] == 1, planes = inner ? 1 : s->channels, each = s->mask_bytes;
  int wrong = 0;
  for (ptrdiff_t n = 0; n < s->images; ++n)
    for (ptrdiff_t c = 0; c < planes; ++c)
      for (ptrdiff_t od = 0; od < s->out[0]; ++od)
        for (ptrdiff_t oh = 0; oh < s->out[1]; ++oh) {
          NAME(Bounds) slices = NAME(bounds_at)(d, od), rows = NAME(bounds_at)(h, oh);
          const char *row = mask;
          row += (n * s->mask[0] + c * s->mask[1] + od * s->mask[2] + oh * s->mask[3]) * each;
          if (!inner) wrong |= NAME(any_outside)(0, s, row, s->out[2], s->mask[4] * each, slices, rows, w);
          else for (ptrdiff_t ow = 0; ow < s->out[2]; ++ow, row += s->mask[4] * each)
            wrong |= NAME(any_outside)(1, s, row, s->channels, each, slices, rows, NAME(bounds_at)(w, ow));
        }
  return wrong;
}
