// Poolings whose windows are whole planes, each a run of places side by side: global pooling, channels first.
//
//     y[c] = max or mean over i of x[c, i]        dx[c, i] = dy[c] * share, or dy[c] where mask[c] == i
//
// Such planes are often smaller than what setting up a window takes, so VL of them are taken together: lanes
// hold places, until one tree over all the planes' vectors joins lanes and leaves a vector of results.

INLINE vec NAME(plane_sum)(const T *x, ptrdiff_t size) {
  vec total = {0};
  for (ptrdiff_t j = 0; j < size;) {
    ptrdiff_t stop = least(size, j + MANY * VL);
    vec sum = {0};
    for (; j + VL <= stop; j += VL) sum += load(x + j);
    if (j < stop) sum += load_part(x + j, stop - j);
    j = stop;
    total += sum;
  }
  return total;
}

// Every lane's maximum with its tap. A last vector may overlap the one before it: equals don't win again.
INLINE void NAME(plane_max)(int op, const T *x, ptrdiff_t size, ivec lane, vec *best, ivec *at) {
  *best = (vec){0} + LOWEST;
  *at = (ivec){0};
  ptrdiff_t j = 0;
  for (; j + VL <= size; j += VL) NAME(take)(op, load(x + j), lane + (INT)j, best, at);
  if (size < VL) {
    ivec inside = (ivec)(lane < (ivec){0} + (INT)size);
    NAME(take)(op, NAME(choose)(inside, load_part(x, size), (vec){0} + LOWEST), lane, best, at);
  } else if (j < size) {
    NAME(take)(op, load(x + size - VL), lane + (INT)(size - VL), best, at);
  }
}

// The greater of two lanes; of equals the one with the smaller tap, NaN before numbers.
INLINE void NAME(join)(int op, vec a, vec b, ivec at_a, ivec at_b, vec *best, ivec *at) {
  ivec takes = (ivec)(~(b <= a) & (a == a));
  if (op == MAX_AND_MASK) {
    takes |= (ivec)((b == a) | ((b != b) & (a != a))) & (ivec)(at_b < at_a);
    *at = (takes & at_b) | (~takes & at_a);
  }
  *best = NAME(choose)(takes, b, a);
}

// Leave in v[0] and at[0] the maxima over the lanes of VL vectors; as sum_lanes.
INLINE void NAME(max_lanes)(int op, vec *v, ivec *at) {
  ptrdiff_t count = VL;
#define STEP(n, h)                                                                         \
  count /= 2;                                                                              \
  UNROLL for (ptrdiff_t i = 0; i < count; ++i) NAME(join)(                                 \
      op, __builtin_shufflevector(v[2 * i], v[2 * i + 1], LOWER_##n##_##h),                \
      __builtin_shufflevector(v[2 * i], v[2 * i + 1], UPPER_##n##_##h),                    \
      __builtin_shufflevector(at[2 * i], at[2 * i + 1], LOWER_##n##_##h),                  \
      __builtin_shufflevector(at[2 * i], at[2 * i + 1], UPPER_##n##_##h), v + i, at + i);
  STEPS
#undef STEP
}

// All planes of an image.
INLINE void NAME(planes)(int op, const Pooling *s, const T *x, const double *shares, T *y, char *mask) {
  T share = op == MEAN ? (T)share_of(s, shares, 0, 0, 0) : 1;
  ivec lane;
  for (int i = 0; i < VL; ++i) lane[i] = i;
  for (ptrdiff_t c = 0; c < s->channels; c += VL) {
    ptrdiff_t count = least(VL, s->channels - c);
    vec v[VECTOR_BYTES / sizeof(T)];
    ivec at[VECTOR_BYTES / sizeof(T)];
    for (ptrdiff_t i = 0; i < VL; ++i) {  // where there are less, the last plane again
      const T *plane = x + (c + least(i, count - 1)) * s->x[1];
      if (op == MEAN) v[i] = NAME(plane_sum)(plane, s->size[2]);
      else NAME(plane_max)(op, plane, s->size[2], lane, v + i, at + i);
    }
    if (op == MEAN) NAME(sum_lanes)(v, VECTOR_BYTES / sizeof(T));
    else NAME(max_lanes)(op, v, at);
    v[0] *= share;
    T *to = y + c * s->y[1];
    if (s->y[1] == 1) store_part(to, v[0], count);
    else for (ptrdiff_t i = 0; i < count; ++i) to[i * s->y[1]] = v[0][i];
    if (op != MAX_AND_MASK) continue;
    char *offsets = mask + c * s->mask[1] * s->mask_bytes;
    if (s->mask[1] == 1 && count == VL) NAME(store_mask)(s, at[0], offsets);
    else for (ptrdiff_t i = 0; i < count; ++i)
      NAME(store_one)(s, at[0][i], offsets + i * s->mask[1] * s->mask_bytes);
  }
}

INLINE void NAME(fill)(T *x, T value, ptrdiff_t size) {
  vec v = (vec){0} + value;
  ptrdiff_t j = 0;
  for (; j + VL <= size; j += VL) store(x + j, v);
  if (j == size) return;
  if (size < VL) store_part(x, v, size);
  else store(x + size - VL, v);
}

// All planes of an image; `together` of them stay in the L1 between zeroing and writing.
INLINE void NAME(planes_backward)(int op, const Pooling *s, const T *y, const double *shares,
                                  const char *mask, ptrdiff_t together, T *x) {
  T share = op == MEAN ? (T)share_of(s, shares, 0, 0, 0) : 1;
  for (ptrdiff_t c = 0; c < s->channels;) {
    ptrdiff_t stop = least(s->channels, c + together), size = s->size[2];
    if (op == MAX && s->x[1] == size) NAME(fill)(x + c * size, 0, (stop - c) * size);
    for (; c < stop; ++c) {
      T *plane = x + c * s->x[1];
      if (op == MEAN) {
        NAME(fill)(plane, y[c * s->y[1]] * share, size);
        continue;
      }
      if (s->x[1] != size) NAME(fill)(plane, 0, size);
      plane[NAME(load_one)(s, mask + c * s->mask[1] * s->mask_bytes)] = y[c * s->y[1]];
    }
  }
}
