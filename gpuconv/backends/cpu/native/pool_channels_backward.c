// Gradients of poolings with vectors of channels: every place of dx gathers from the windows that have it.
//
//     dx[n, i, c] = sum over windows o that read place i with a tap t of
//                       dy[n, o, c] * share(o)                 mean
//                       dy[n, o, c] where mask[n, o, c] == t   maximum
//
// So dx is written once, and sums run in the order of the windows.

INLINE void NAME(add_where)(int v, const T *y, const char *mask, ptrdiff_t each, INT tap, vec *sum) {
  UNROLL for (int k = 0; k < v; ++k) {
    ivec here = (ivec)(NAME(load_mask)(each, mask + k * VL * each) == (ivec){0} + tap);
    sum[k] += (vec)(here & (ivec)load(y + k * VL));
  }
}

INLINE void NAME(place_channels)(int op, int v, const Pooling *s, const ptrdiff_t *i, const Range *windows,
                                 const T *y, const double *shares, const char *mask, T *x) {
  vec sum[8];
  UNROLL for (int k = 0; k < v; ++k) sum[k] = (vec){0};
  for (ptrdiff_t od = windows[0].begin; od < windows[0].end; ++od) {
    ptrdiff_t jd = tap_at(s, 0, od, i[0]);
    for (ptrdiff_t oh = windows[1].begin; jd >= 0 && oh < windows[1].end; ++oh) {
      ptrdiff_t jh = tap_at(s, 1, oh, i[1]);
      for (ptrdiff_t ow = windows[2].begin; jh >= 0 && ow < windows[2].end; ++ow) {
        ptrdiff_t jw = tap_at(s, 2, ow, i[2]);
        if (jw < 0) continue;
        const T *from = y + od * s->y[2] + oh * s->y[3] + ow * s->y[4];
        if (op == MEAN) {
          T share = (T)share_of(s, shares, od, oh, ow);
          UNROLL for (int k = 0; k < v; ++k) sum[k] += load(from + k * VL) * share;
        } else {
          const char *at = mask + (od * s->mask[2] + oh * s->mask[3] + ow * s->mask[4]) * s->mask_bytes;
          INT tap = (INT)((jd * s->kernel[1] + jh) * s->kernel[2] + jw);
          // Asked once, not for every vector.
          if (s->mask_bytes == 1) NAME(add_where)(v, from, at, 1, tap, sum);
          else NAME(add_where)(v, from, at, s->mask_bytes, tap, sum);
        }
      }
    }
  }
  UNROLL for (int k = 0; k < v; ++k) store(x + k * VL, sum[k]);
}

// Places that follow one another along w and that only window o has, the first with tap j (number `tap`).
INLINE void NAME(run_channels)(int op, int v, const Pooling *s, ptrdiff_t count, ptrdiff_t tap, const T *y,
                               T share, const char *mask, T *x) {
  vec value[8];
  ivec at[8];
  UNROLL for (int k = 0; k < v; ++k) {
    value[k] = load(y + k * VL);
    if (op == MEAN) value[k] *= share;
    else at[k] = NAME(load_mask)(s->mask_bytes, mask + k * VL * s->mask_bytes);
  }
  for (ptrdiff_t end = tap + count; tap < end; ++tap, x += s->x[4]) {
    UNROLL for (int k = 0; k < v; ++k) {
      if (op == MEAN) store(x + k * VL, value[k]);
      else store(x + k * VL, (vec)((ivec)(at[k] == (ivec){0} + (INT)tap) & (ivec)value[k]));
    }
  }
}

// Places along w that only one window has: how many (0: several windows have place i, or none), the first
// place's tap, and where the window's dy and mask are.
#define Run NAME(Run)
typedef struct {
  ptrdiff_t count, tap, y, mask;
  T share;
} Run;

INLINE void NAME(some_channels)(int op, int v, const Pooling *s, const ptrdiff_t *i, const Range *windows,
                                const Run *run, const T *y, const double *shares, const char *mask, T *x) {
  if (!run->count) NAME(place_channels)(op, v, s, i, windows, y, shares, mask, x);
  else NAME(run_channels)(op, v, s, run->count, run->tap, y + run->y, run->share, mask + run->mask, x);
}

// All channels of them: v vectors, or, where v is 0, eight at a time, then four, then single ones.
INLINE void NAME(all_channels_backward)(int op, int v, const Pooling *s, const ptrdiff_t *i,
                                        const Range *windows, const Run *run, const T *y,
                                        const double *shares, const char *mask, T *x) {
  ptrdiff_t c = 0, each = op == MEAN ? 0 : s->mask_bytes;
  if (v) {
    NAME(some_channels)(op, v, s, i, windows, run, y, shares, mask, x);
    return;
  }
  for (; c + 8 * VL <= s->channels; c += 8 * VL)
    NAME(some_channels)(op, 8, s, i, windows, run, y + c, shares, mask + c * each, x + c);
  for (; c + 4 * VL <= s->channels; c += 4 * VL)
    NAME(some_channels)(op, 4, s, i, windows, run, y + c, shares, mask + c * each, x + c);
  for (; c < s->channels; c += VL) {
    ptrdiff_t from = least(c, s->channels - VL);
    NAME(some_channels)(op, 1, s, i, windows, run, y + from, shares, mask + from * each, x + from);
  }
}

INLINE void NAME(channels_backward_by)(int op, int v, const Pooling *s, const T *y, const double *shares,
                                       const char *mask, T *x, const Range *along_w) {
  Range windows[3];
  ptrdiff_t i[3];
  for (i[0] = 0; i[0] < s->size[0]; ++i[0]) {
    windows[0] = windows_over(s, 0, i[0]);
    for (i[1] = 0; i[1] < s->size[1]; ++i[1]) {
      windows[1] = windows_over(s, 1, i[1]);
      ptrdiff_t od = windows[0].begin, oh = windows[1].begin;
      ptrdiff_t jd = tap_at(s, 0, od, i[0]), jh = tap_at(s, 1, oh, i[1]);
      ptrdiff_t one = windows[0].end - od == 1 && windows[1].end - oh == 1 && jd >= 0 && jh >= 0;
      for (ptrdiff_t next = i[2] = 0; i[2] < s->size[2]; i[2] = next) {
        ptrdiff_t ow = along_w[i[2]].begin;
        Run run = {0};
        windows[2] = along_w[i[2]];
        next = i[2] + 1;
        if (one && windows[2].end - ow == 1 && s->dilation[2] == 1) {
          while (next < s->size[2] && along_w[next].begin == ow && along_w[next].end == ow + 1) ++next;
          run.count = next - i[2];
          run.tap = (jd * s->kernel[1] + jh) * s->kernel[2] + tap_at(s, 2, ow, i[2]);
          run.y = od * s->y[2] + oh * s->y[3] + ow * s->y[4];
          run.mask = (od * s->mask[2] + oh * s->mask[3] + ow * s->mask[4]) * s->mask_bytes;
          if (op == MEAN) run.share = (T)share_of(s, shares, od, oh, ow);
        }
        NAME(all_channels_backward)(op, v, s, i, windows, &run, y, shares, mask,
                                    x + i[0] * s->x[2] + i[1] * s->x[3] + i[2] * s->x[4]);
      }
    }
  }
}

// memory is one Range for each place along w. A constant number of vectors leaves less to do at each place.
INLINE void NAME(channels_backward)(int op, const Pooling *s, const T *y, const double *shares,
                                    const char *mask, T *x, T *memory) {
  Range *along_w = (Range *)memory;
  for (ptrdiff_t i = 0; i < s->size[2]; ++i) along_w[i] = windows_over(s, 2, i);
  if (s->channels == VL) NAME(channels_backward_by)(op, 1, s, y, shares, mask, x, along_w);
  else if (s->channels == 4 * VL) NAME(channels_backward_by)(op, 4, s, y, shares, mask, x, along_w);
  else NAME(channels_backward_by)(op, 0, s, y, shares, mask, x, along_w);
}
