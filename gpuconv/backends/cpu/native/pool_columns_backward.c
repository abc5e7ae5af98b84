// Gradients of means whose windows share out the image, row by row (channels first):
//
//     line[o] = sum over the windows (d, h) that have this row of dy[d, h, o] * share(d, h, o)
//     dx[.., i] = sum over the windows o that have place i along w of line[o]
//
// Rows that the same windows have are equal: they are summed once, and written so many times.

INLINE void NAME(sum_line)(const Pooling *s, const T *y, const double *shares, Range d, Range h, T *line) {
  const double *along_w = shares + s->out[0] + s->out[1];
  for (ptrdiff_t o = 0; o < s->out[2]; ++o) line[o] = 0;
  for (ptrdiff_t od = d.begin; od < d.end; ++od)
    for (ptrdiff_t oh = h.begin; oh < h.end; ++oh) {
      const T *row = y + od * s->y[2] + oh * s->y[3];
      double shared = row_share(s, shares, od, oh);
      for (ptrdiff_t o = 0; o < s->out[2]; ++o) line[o] += row[o * s->y[4]] * (T)(shared * along_w[o]);
    }
}

// One plane (or volume); memory is a Range for each place along w, a row of dx and one of dy.
INLINE void NAME(columns_backward)(const Pooling *s, const T *y, const double *shares, T *x, T *memory) {
  Range *windows = (Range *)memory;
  T *row = (T *)(windows + s->size[2]), *line = row + s->size[2];
  for (ptrdiff_t i = 0; i < s->size[2]; ++i) windows[i] = windows_over(s, 2, i);
  for (ptrdiff_t d = 0; d < s->size[0]; ++d) {
    Range last = {0, 0};
    for (ptrdiff_t h = 0; h < s->size[1]; ++h) {
      Range now = windows_over(s, 1, h);
      if (now.begin != last.begin || now.end != last.end) {
        NAME(sum_line)(s, y, shares, windows_over(s, 0, d), now, line);
        for (ptrdiff_t i = 0; i < s->size[2]; ++i)
          row[i] = NAME(sum_places)(line + windows[i].begin, windows[i].end - windows[i].begin);
        last = now;
      }
      T *to = x + d * s->x[2] + h * s->x[3];
      if (s->x[4] == 1) for (ptrdiff_t i = 0; i < s->size[2]; ++i) to[i] = row[i];
      else for (ptrdiff_t i = 0; i < s->size[2]; ++i) to[i * s->x[4]] = row[i];
    }
  }
}
