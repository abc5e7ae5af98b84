// Whether a max pooling's masks name places of x: offsets of their windows, and none in the padding.

INLINE ptrdiff_t NAME(too_large)(const Pooling *s, const char *mask, ptrdiff_t count, ptrdiff_t step) {
  unsigned long long taps = s->kernel[0] * s->kernel[1] * s->kernel[2], wrong = 0;
  if (s->mask_bytes == 1 && step == 1) {
    unsigned char greatest = 0;
    for (ptrdiff_t i = 0; i < count; ++i) {
      unsigned char at = ((const unsigned char *)mask)[i];
      greatest = at > greatest ? at : greatest;
    }
    return greatest >= taps;
  }
  for (ptrdiff_t i = 0; i < count; ++i)
    wrong |= (unsigned long long)NAME(load_one)(s, mask + i * step * s->mask_bytes) >= taps;
  return (ptrdiff_t)wrong;
}

// Whether a tap is outside of `inside`, along an axis; `inner` are the taps of the axes after it.
INLINE int NAME(is_outside)(const Pooling *s, unsigned tap, int axis, Range inside, unsigned inner) {
  ptrdiff_t j = tap / inner % (unsigned)s->kernel[axis];
  return (j < inside.begin) | (j >= inside.end);
}

// Whether windows o along an axis name taps outside of x; `inner` are the taps of the axes after it.
INLINE ptrdiff_t NAME(in_padding)(const Pooling *s, const char *mask, int axis, ptrdiff_t o, unsigned inner) {
  Range inside = taps_inside(s, axis, o);
  ptrdiff_t wrong = 0, sizes[5] = {s->images, s->channels, s->out[0], s->out[1], s->out[2]};
  ptrdiff_t last = s->mask[1] == 1, size[5], step[5], i[5];  // last: channels are the innermost loop
  if (inside.end - inside.begin == s->kernel[axis]) return 0;
  unsigned char outside[256];  // of each tap that a byte can name: windows are many more, and divisions slow
  unsigned taps = (unsigned)least(256, s->kernel[0] * s->kernel[1] * s->kernel[2]);
  for (unsigned tap = 0; s->mask_bytes == 1 && tap < taps; ++tap)
    outside[tap] = (unsigned char)NAME(is_outside)(s, tap, axis, inside, inner);
  mask += o * s->mask[2 + axis] * s->mask_bytes;
  sizes[2 + axis] = 1;
  for (int a = 0; a < 5; ++a) {
    int from = !last || a == 0 ? a : a == 4 ? 1 : a + 1;
    size[a] = sizes[from], step[a] = s->mask[from] * s->mask_bytes;
  }
  for (i[0] = 0; i[0] < size[0]; ++i[0])
    for (i[1] = 0; i[1] < size[1]; ++i[1])
      for (i[2] = 0; i[2] < size[2]; ++i[2])
        for (i[3] = 0; i[3] < size[3]; ++i[3]) {
          const char *at = mask + i[0] * step[0] + i[1] * step[1] + i[2] * step[2] + i[3] * step[3];
          if (s->mask_bytes == 1)
            for (i[4] = 0; i[4] < size[4]; ++i[4]) wrong |= outside[(unsigned char)at[i[4] * step[4]]];
          else
            for (i[4] = 0; i[4] < size[4]; ++i[4], at += step[4])
              wrong |= NAME(is_outside)(s, (unsigned)NAME(load_one)(s, at), axis, inside, inner);
        }
  return wrong;
}

// Set *wrong where a mask names no place. Large offsets are looked for along whichever axis is dense.
EXPORT void NAME(check_mask)(const Pooling *s, const char *mask, ptrdiff_t *wrong, T *memory) {
  if (!s->stride[2]) {
    if (NAME(any_outside_windows)(s, mask, (double *)memory)) *wrong = 1;
    return;
  }
  ptrdiff_t found = 0, width = s->out[2], height = s->out[1];
  if (s->mask[3] == width * s->mask[4]) width *= height, height = 1;
  for (ptrdiff_t n = 0; n < s->images; ++n) {
    const char *image = mask + n * s->mask[0] * s->mask_bytes;
    for (ptrdiff_t d = 0; d < s->out[0]; ++d) {
      for (ptrdiff_t h = 0; h < height; ++h) {
        const char *row = image + (d * s->mask[2] + h * s->mask[3]) * s->mask_bytes;
        if (s->mask[1] == 1)
          for (ptrdiff_t w = 0; w < width; ++w)
            found |= NAME(too_large)(s, row + w * s->mask[4] * s->mask_bytes, s->channels, 1);
        else
          for (ptrdiff_t c = 0; c < s->channels; ++c)
            found |= NAME(too_large)(s, row + c * s->mask[1] * s->mask_bytes, width, s->mask[4]);
      }
    }
  }
  unsigned inner = 1;
  for (int axis = 2; axis >= 0 && !found; --axis) {
    for (ptrdiff_t o = 0; o < s->out[axis]; ++o) found |= NAME(in_padding)(s, mask, axis, o, inner);
    inner *= (unsigned)s->kernel[axis];
  }
  if (found) *wrong = 1;
}
