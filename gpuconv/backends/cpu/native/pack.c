// Weights in the order in which blocks of kernels read them: [blocks of M][c][t][M], zeros behind the last
// kernel. Tap t of w lies at place[t]; kernels and channels are `k_step` and `c_step` apart.

// Write a block of m kernels, `there` of which exist.
INLINE void NAME(pack_block)(const T *w, ptrdiff_t m, ptrdiff_t there, ptrdiff_t channels, ptrdiff_t taps,
                             ptrdiff_t k_step, ptrdiff_t c_step, const ptrdiff_t *place, T *to) {
  for (ptrdiff_t c = 0; c < channels; ++c, w += c_step) {
    for (ptrdiff_t t = 0; t < taps; ++t, to += m) {
      const T *tap = w + place[t];
      ptrdiff_t i = 0;
      if (k_step == 1)
        for (; i + VL <= there; i += VL) store(to + i, load(tap + i));
      for (; i + 8 <= there; i += 8)
        UNROLL for (ptrdiff_t j = 0; j < 8; ++j) to[i + j] = tap[(i + j) * k_step];
      for (; i < there; ++i) to[i] = tap[i * k_step];
      for (; i < m; ++i) to[i] = 0;
    }
  }
}

// The same where channels lie side by side, as they do for an input gradient of weights channels last.
INLINE void NAME(pack_block_across)(const T *w, ptrdiff_t m, ptrdiff_t there, ptrdiff_t channels,
                                    ptrdiff_t taps, ptrdiff_t k_step, const ptrdiff_t *place, T *to) {
  for (ptrdiff_t t = 0; t < taps; ++t, to += m) {
    for (ptrdiff_t c = 0; c < channels; c += VL) {
      T *block = to + c * taps * m;
      ptrdiff_t across = least(VL, channels - c);
      for (ptrdiff_t i = 0; i < there; i += VL)
        NAME(turn)(block + i, taps * m, w + place[t] + c + i * k_step, k_step, least(VL, there - i), across);
      for (ptrdiff_t j = 0; j < across; ++j)
        for (ptrdiff_t i = there; i < m; ++i) block[j * taps * m + i] = 0;
    }
  }
}

// Write packed weights of kernels k0 .. k1 of one group, and their biases (zeros for none), in blocks for
// outer.c or, if not `outer`, for multiply.c.
EXPORT void NAME(pack)(const T *w, const T *b, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t kernels,
                       ptrdiff_t channels, ptrdiff_t taps, ptrdiff_t k_step, ptrdiff_t c_step,
                       const ptrdiff_t *place, ptrdiff_t outer, T *packed, T *bias) {
  for (ptrdiff_t k = k0; k < k1;) {
    ptrdiff_t m = outer ? NAME(wide_at)(k, kernels) : NAME(rows_at)(k, kernels);
    ptrdiff_t there = least(m, kernels - k);
    const T *from = w + k * k_step;
    T *to = packed + k * channels * taps;
    for (ptrdiff_t i = 0; i < m; ++i) bias[k + i] = b && i < there ? b[k + i] : 0;
    if (c_step == 1 && channels > 1)
      NAME(pack_block_across)(from, m, there, channels, taps, k_step, place, to);
    else
      NAME(pack_block)(from, m, there, channels, taps, k_step, c_step, place, to);
    k += m;
  }
}
