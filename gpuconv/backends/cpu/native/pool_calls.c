// Poolings and their gradients as they are called: image by image, in the way that the caller chose.

INLINE void NAME(pool)(int op, const Pooling *given, const T *x, const double *shares, T *y, char *mask,
                       T *memory) {
  const Pooling own = *given, *s = &own;  // which no store of a vector can change, as the compiler sees
  Rows r = {0};
  if (s->way == BY_ROWS) r = NAME(rows_of)(s, memory);
  for (ptrdiff_t n = 0; n < s->images; ++n) {
    if (s->way == BY_CHANNELS) {
      NAME(channels)(op, s, x + n * s->x[0], shares, y + n * s->y[0], mask + n * s->mask[0] * s->mask_bytes);
      continue;
    }
    if (s->way == BY_PLANES) {
      NAME(planes)(op, s, x + n * s->x[0], shares, y + n * s->y[0], mask + n * s->mask[0] * s->mask_bytes);
      continue;
    }
    for (ptrdiff_t c = 0; c < s->channels; ++c) {
      const T *plane = x + n * s->x[0] + c * s->x[1];
      T *to = y + n * s->y[0] + c * s->y[1];
      char *offsets = mask + (n * s->mask[0] + c * s->mask[1]) * s->mask_bytes;
      if (s->way == BY_ROWS) NAME(rows)(op, s, &r, plane, shares, to, offsets);
      else if (s->way == BY_COLUMNS) NAME(columns)(op, s, plane, shares, to, offsets, memory);
      else NAME(windows)(op, s, plane, shares, to, offsets);
    }
  }
}

// mask may be null: then the values alone are wanted.
EXPORT void NAME(max_pool)(const Pooling *s, const T *x, T *y, char *mask, T *memory) {
  if (s->mask_bytes) NAME(pool)(MAX_AND_MASK, s, x, 0, y, mask, memory);
  else NAME(pool)(MAX, s, x, 0, y, mask, memory);
}

EXPORT void NAME(avg_pool)(const Pooling *s, const T *x, const double *shares, T *y, T *memory) {
  NAME(pool)(MEAN, s, x, shares, y, 0, memory);
}

INLINE void NAME(pool_backward)(int op, const Pooling *given, const T *y, const double *shares,
                                const char *mask, T *x, T *memory) {
  const Pooling own = *given, *s = &own;
  // Small planes are zeroed several at once, and are in the L1 still when they are added to.
  ptrdiff_t size = s->size[0] * s->size[1] * s->size[2], together = most(1, 2048 / size);
  ptrdiff_t *far = op != MEAN && s->way == BY_WINDOWS ? (ptrdiff_t *)memory : 0;
  int pairs = NAME(are_pairs)(op, s);
  NAME(find_far)(s, x, far);
  for (ptrdiff_t n = 0; n < s->images; ++n) {
    if (s->way == BY_CHANNELS) {
      NAME(channels_backward)(op, s, y + n * s->y[0], shares, mask + n * s->mask[0] * s->mask_bytes,
                              x + n * s->x[0], memory);
      continue;
    }
    if (s->way == BY_PLANES) {
      NAME(planes_backward)(op, s, y + n * s->y[0], shares, mask + n * s->mask[0] * s->mask_bytes, together,
                            x + n * s->x[0]);
      continue;
    }
    for (ptrdiff_t c = 0; c < s->channels; ++c) {
      const T *from = y + n * s->y[0] + c * s->y[1];
      T *plane = x + n * s->x[0] + c * s->x[1];
      const char *offsets = mask + (n * s->mask[0] + c * s->mask[1]) * s->mask_bytes;
      if (s->way == BY_ROWS && pairs) {
        NAME(pairs_backward)(op, s, from, shares, offsets, plane);
        continue;
      }
      if (s->way == BY_ROWS) {
        NAME(rows_backward)(op, s, from, shares, offsets, plane, memory);
        continue;
      }
      if (s->way == BY_COLUMNS) {
        NAME(columns_backward)(s, from, shares, plane, memory);
        continue;
      }
      if (c % together == 0) NAME(zero_planes)(s, least(together, s->channels - c), plane);
      NAME(windows_backward)(op, s, from, shares, offsets, plane, far);
    }
  }
}

EXPORT void NAME(max_pool_backward)(const Pooling *s, const T *dy, const char *mask, T *dx, T *memory) {
  if (s->way == BY_PLACES) NAME(scatter_images)(ADD, s, dy, mask, dx, memory);
  else NAME(pool_backward)(MAX, s, dy, 0, mask, dx, memory);
}

EXPORT void NAME(avg_pool_backward)(const Pooling *s, const T *dy, const double *shares, T *dx, T *memory) {
  NAME(pool_backward)(MEAN, s, dy, shares, 0, dx, memory);
}
