// Gradients of poolings with vectors of channels: every place of dx gathers from the windows that have it.
//
//     dx[n, i, c] = sum over windows o that read place i with a tap t of
//                       dy[n, o, c] * share(o)                 mean
//                       dy[n, o, c] where mask[n, o, c] == t   maximum
//
// So dx is written once, and sums run in the order of the windows.

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
          T share = (T)(share_of(s, shares, od, oh) * shares[s->out[0] + s->out[1] + ow]);
          UNROLL for (int k = 0; k < v; ++k) sum[k] += load(from + k * VL) * share;
        } else {
          const char *at = mask + (od * s->mask[2] + oh * s->mask[3] + ow * s->mask[4]) * s->mask_bytes;
          INT tap = (INT)((jd * s->kernel[1] + jh) * s->kernel[2] + jw);
          UNROLL for (int k = 0; k < v; ++k) {
            ivec here = (ivec)(NAME(load_mask)(s, at + k * VL * s->mask_bytes) == (ivec){0} + tap);
            sum[k] += (vec)(here & (ivec)load(from + k * VL));
          }
        }
      }
    }
  }
  UNROLL for (int k = 0; k < v; ++k) store(x + k * VL, sum[k]);
}

INLINE void NAME(channels_backward_of)(int op, int v, const Pooling *s, const T *y, const double *shares,
                                       const char *mask, T *x, const Range *along_w) {
  ptrdiff_t i[3];
  Range windows[3];
  for (i[0] = 0; i[0] < s->size[0]; ++i[0]) {
    windows[0] = windows_over(s, 0, i[0]);
    for (i[1] = 0; i[1] < s->size[1]; ++i[1]) {
      windows[1] = windows_over(s, 1, i[1]);
      for (i[2] = 0; i[2] < s->size[2]; ++i[2]) {
        windows[2] = along_w[i[2]];
        NAME(place_channels)(op, v, s, i, windows, y, shares, mask,
                             x + i[0] * s->x[2] + i[1] * s->x[3] + i[2] * s->x[4]);
      }
    }
  }
}

// memory is one Range for each place along w.
INLINE void NAME(channels_backward)(int op, const Pooling *s, const T *y, const double *shares,
                                    const char *mask, T *x, T *memory) {
  Range *along_w = (Range *)memory;
  for (ptrdiff_t i = 0; i < s->size[2]; ++i) along_w[i] = windows_over(s, 2, i);
  ptrdiff_t c = 0, each = op == MEAN ? 0 : s->mask_bytes;
  for (; c + 8 * VL <= s->channels; c += 8 * VL)
    NAME(channels_backward_of)(op, 8, s, y + c, shares, mask + c * each, x + c, along_w);
  for (; c + 4 * VL <= s->channels; c += 4 * VL)
    NAME(channels_backward_of)(op, 4, s, y + c, shares, mask + c * each, x + c, along_w);
  for (; c < s->channels; c += VL) {
    ptrdiff_t from = least(c, s->channels - VL);
    NAME(channels_backward_of)(op, 1, s, y + from, shares, mask + from * each, x + from, along_w);
  }
}
