// The same sums with kernels along the vector: for planes whose rows fill vectors badly, and for arrays
// channels last, where a row of kernels lies in one place.
//
//     y[k, p]     = b[k] + sum over s = (c, t) of  w[k, s] * flat[a(s) + p]
//     dw[k, c, t] =        sum over s = (n, p) of dy[k, s] * flat[a(s) + offset(c, t)]
//
// Both are sums of outer products, z[i, k] += flat[a(s) + b(i)] * rows[s][k]: a block of I scalars by V
// vectors of kernels stays in registers; for each s, V loads, I scalars, I * V multiply-adds. Only scalars are
// read of x, so nothing beyond it, and where there is no padding it is read where it lies, whatever its strides.

// The most scalars of a block: two vectors of sums each, with room for a scalar and a row. Two more fit 32
// registers, but clang then keeps sums in memory.
#if REGISTERS == 32
#define SCALARS 12
#else
#define SCALARS 6
#endif
#define WIDTH (2 * VL)
// The compiler loads nothing from behind it before the sum is there: clang would load all scalars first, and
// keep sums in memory for them, a fifth slower.
#if defined(__x86_64__)
#define FINISH(sum) __asm__ volatile("" : "+v"(sum) : : "memory")
#elif defined(__aarch64__)
#define FINISH(sum) __asm__ volatile("" : "+w"(sum) : : "memory")
#else
#define FINISH(sum)
#endif

// What the sums of a block run over: steps of each of some images.
#define Sums NAME(Sums)
typedef struct {
  ptrdiff_t images, x_image, rows_image;  // how far apart they lie
  ptrdiff_t steps, row;                   // rows' own step
  const ptrdiff_t *a;
} Sums;

INLINE void NAME(outer)(int n, int v, const Sums *s, const T *restrict x, const ptrdiff_t *restrict b,
                        const T *restrict rows, const T *restrict begin, T *restrict tile) {
  vec sum[SCALARS * 2];
  UNROLL for (int i = 0; i < n; ++i) UNROLL for (int j = 0; j < v; ++j)
      sum[i * v + j] = begin ? load(begin + j * VL) : (vec){0};
  for (ptrdiff_t image = 0; image < s->images; ++image, x += s->x_image, rows += s->rows_image) {
    const ptrdiff_t *restrict a = s->a;
    const T *restrict row = rows;
    for (ptrdiff_t step = s->steps; step; --step, row += s->row) {
      const T *from = x + *a++;
      vec r[2];
      UNROLL for (int j = 0; j < v; ++j) r[j] = load(row + j * VL);
      UNROLL for (int i = 0; i < n; ++i) {
        T scalar = from[b[i]];
        UNROLL for (int j = 0; j < v; ++j) {
          sum[i * v + j] += scalar * r[j];
          FINISH(sum[i * v + j]);
        }
      }
    }
  }
  UNROLL for (int i = 0; i < n; ++i) UNROLL for (int j = 0; j < v; ++j)
      store(tile + i * WIDTH + j * VL, sum[i * v + j]);
}

// Write z of `n` scalars, as many as SCALARS or fewer, and v vectors of kernels to tile, [n][WIDTH].
static void NAME(outer_block)(ptrdiff_t n, ptrdiff_t v, const Sums *s, const T *x, const ptrdiff_t *b,
                              const T *rows, const T *begin, T *tile) {
  ptrdiff_t each[SCALARS];  // the last once more, where there are fewer than a block has
  for (ptrdiff_t i = 0; i < SCALARS; ++i) each[i] = b[least(i, n - 1)];
  ptrdiff_t third = SCALARS / 3;
  switch ((n + third - 1) / third * 2 + v) {
    case 3: NAME(outer)(SCALARS / 3, 1, s, x, each, rows, begin, tile); break;
    case 4: NAME(outer)(SCALARS / 3, 2, s, x, each, rows, begin, tile); break;
    case 5: NAME(outer)(SCALARS / 3 * 2, 1, s, x, each, rows, begin, tile); break;
    case 6: NAME(outer)(SCALARS / 3 * 2, 2, s, x, each, rows, begin, tile); break;
    case 7: NAME(outer)(SCALARS, 1, s, x, each, rows, begin, tile); break;
    case 8: NAME(outer)(SCALARS, 2, s, x, each, rows, begin, tile); break;
  }
}

// Write the places of a tile, n of `kernels`, to y, where they lie at to[i].
INLINE void NAME(write_places)(const Convolution *s, const T *tile, ptrdiff_t n, ptrdiff_t kernels,
                               const ptrdiff_t *to, T *y) {
  if (s->y[1] == 1) {
    for (ptrdiff_t i = 0; i < n; ++i)
      for (ptrdiff_t k = 0; k < kernels; k += VL)
        if (kernels - k >= VL) store(y + to[i] + k, load(tile + i * WIDTH + k));
        else store_part(y + to[i] + k, load(tile + i * WIDTH + k), kernels - k);
  } else if (to[n - 1] - to[0] == n - 1) {
    for (ptrdiff_t i = 0; i < n; i += VL)
      for (ptrdiff_t k = 0; k < kernels; k += VL)
        NAME(turn)(y + to[i] + k * s->y[1], s->y[1], tile + i * WIDTH + k, WIDTH, least(VL, n - i),
                   least(VL, kernels - k));
  } else {
    for (ptrdiff_t k = 0; k < kernels; ++k)
      for (ptrdiff_t i = 0; i < n; ++i) y[to[i] + k * s->y[1]] = tile[i * WIDTH + k];
  }
}

// Write, for every output place of the box, where x's lies and where y's, [2][places]; return what is behind.
INLINE T *NAME(number_places)(const Convolution *s, ptrdiff_t *in) {
  ptrdiff_t places = s->box[0] * s->box[1] * s->box[2], *out = in + places;
  for (ptrdiff_t d = 0; d < s->box[0]; ++d)
    for (ptrdiff_t h = 0; h < s->box[1]; ++h)
      for (ptrdiff_t w = 0; w < s->box[2]; ++w) {
        *in++ = d * s->reads[0] + h * s->reads[1] + w * s->reads[2];
        *out++ = d * s->y[2] + h * s->y[3] + w * s->y[4];
      }
  return (T *)out;
}

// The kernels of the block at k of n, the last one filled up: WIDTH, or a vector.
INLINE ptrdiff_t NAME(wide_at)(ptrdiff_t k, ptrdiff_t n) { return n - k > VL ? WIDTH : VL; }

// Lay out one image channels last, where x is: flat[phase][d][h][w][c].
INLINE void NAME(flatten_last)(const Convolution *s, const ptrdiff_t *residue, const T *x, T *to) {
  const ptrdiff_t *e = s->extent, stop = s->size[2];
  for (ptrdiff_t phase = 0; phase < s->phases; ++phase, residue += 3) {
    T *begin = to;
    for (ptrdiff_t d = s->first[0] + residue[0], slice = 0; slice < e[0]; ++slice, d += s->stride[0]) {
      for (ptrdiff_t h = s->first[1] + residue[1], i = 0; i < e[1]; ++i, h += s->stride[1]) {
        ptrdiff_t inside = d >= 0 && d < s->size[0] && h >= 0 && h < s->size[1];
        const T *from = inside ? x + d * s->x[2] + h * s->x[3] : x;
        ptrdiff_t w = s->first[2] + residue[2];
        for (ptrdiff_t q = 0; q < e[2]; ++q, w += s->stride[2], to += s->channels) {
          ptrdiff_t there = inside && w >= 0 && w < stop ? s->channels : 0;
          NAME(fill_row)(to, (Row){s->channels, 0, there, 0}, there ? from + w * s->x[4] : x, 1, 1);
        }
      }
    }
    ptrdiff_t end = s->plane * s->channels - (to - begin);
    for (; end; --end) *to++ = 0;
  }
}

INLINE void NAME(flatten_outer)(const Convolution *s, const ptrdiff_t *residue, const T *x, T *to) {
  if (s->x[1] == 1 && s->channels > 1) NAME(flatten_last)(s, residue, x, to);
  else NAME(flatten)(s, residue, x, to);
}

// As `convolve`, with weights packed in blocks of WIDTH, or of a vector at the end, and the offsets of all
// channels' taps. `flat` holds two numbers for each place, then one image's group, where x isn't in place.
EXPORT void NAME(convolve_outer)(const Convolution *s, const ptrdiff_t *residue, const ptrdiff_t *offset,
                                 const T *x, const T *packed, const T *bias, T *y, ptrdiff_t padded,
                                 T *flat) {
  T tile[SCALARS * WIDTH] __attribute__((aligned(64)));
  ptrdiff_t places = s->box[0] * s->box[1] * s->box[2], all = s->channels * s->taps;
  ptrdiff_t *in = (ptrdiff_t *)flat, *out = in + places;
  flat = NAME(number_places)(s, in);
  if (s->x_in_place) x += s->first[0] * s->x[2] + s->first[1] * s->x[3] + s->first[2] * s->x[4];
  for (ptrdiff_t n = 0; n < s->images; ++n) {
    for (ptrdiff_t g = 0; g < s->groups; ++g) {
      const T *image = x + n * s->x[0] + g * s->channels * s->x[1];
      const T *w = packed + g * padded * all;
      T *to = y + n * s->y[0] + g * s->kernels * s->y[1];
      if (!s->x_in_place) {
        NAME(flatten_outer)(s, residue, image, flat);
        image = flat;
      }
      for (ptrdiff_t k = 0; k < s->kernels; k += WIDTH) {
        ptrdiff_t kernels = least(WIDTH, s->kernels - k), wide = NAME(wide_at)(k, s->kernels);
        Sums sums = {.images = 1, .steps = all, .row = wide, .a = offset};
        for (ptrdiff_t p = 0; p < places; p += SCALARS) {
          ptrdiff_t count = least(SCALARS, places - p);
          NAME(outer_block)(count, wide / VL, &sums, image, in + p, w + k * all, bias + g * padded + k, tile);
          NAME(write_places)(s, tile, count, kernels, out + p, to + k * s->y[1]);
        }
      }
    }
  }
}

// Write one image's dy as rows of kernels, [places][row].
INLINE void NAME(rows_of_dy)(const Convolution *s, const T *dy, T *to, ptrdiff_t row) {
  // A plane whose places lie side by side is like one long row of them.
  ptrdiff_t places = s->box[0] * s->box[1] * s->box[2], plane = s->box[1] * s->box[2];
  ptrdiff_t dense = s->y[4] == 1 && s->y[3] == s->box[2] && (s->box[0] == 1 || s->y[2] == plane);
  ptrdiff_t columns = dense ? places : s->box[2];
  for (ptrdiff_t p = 0; p < places; p += columns, to += columns * row) {
    ptrdiff_t line = p / s->box[2];
    const T *from = dy + line / s->box[1] * s->y[2] + line % s->box[1] * s->y[3];
    if (s->y[4] == 1) {
      for (ptrdiff_t q = 0; q < columns; q += VL)
        for (ptrdiff_t k = 0; k < s->kernels; k += VL)
          NAME(turn)(to + q * row + k, row, from + k * s->y[1] + q, s->y[1], least(VL, s->kernels - k),
                     least(VL, columns - q));
    } else {
      for (ptrdiff_t q = 0; q < columns; ++q)
        for (ptrdiff_t k = 0; k < s->kernels; ++k) to[q * row + k] = from[q * s->y[4] + k * s->y[1]];
    }
  }
}

// Add a tile, taps by kernels, to dw, [kernels][row].
INLINE void NAME(add_taps)(const T *tile, ptrdiff_t taps, ptrdiff_t kernels, T *dw, ptrdiff_t row) {
  T turned[VECTOR_BYTES / sizeof(T) * VECTOR_BYTES / sizeof(T)];
  for (ptrdiff_t i = 0; i < taps; i += VL) {
    for (ptrdiff_t k = 0; k < kernels; k += VL) {
      ptrdiff_t wide = least(VL, taps - i), high = least(VL, kernels - k);
      NAME(turn)(turned, VL, tile + i * WIDTH + k, WIDTH, wide, high);
      for (ptrdiff_t j = 0; j < high; ++j) {
        T *to = dw + (k + j) * row + i;
        store_part(to, load_part(to, wide) + load(turned + j * VL), wide);
      }
    }
  }
}

// As `weight_gradient`; `flat` holds two numbers for each place, then what isn't in place.
EXPORT void NAME(weight_gradient_outer)(const Convolution *s, const ptrdiff_t *residue,
                                        const ptrdiff_t *offset, const T *x, const T *dy, T *dw, T *flat) {
  T tile[SCALARS * WIDTH] __attribute__((aligned(64)));
  ptrdiff_t places = s->box[0] * s->box[1] * s->box[2], all = s->channels * s->taps;
  Sums sums = {s->images, s->x[0], s->y[0], places, s->y[4], (ptrdiff_t *)flat};
  flat = NAME(number_places)(s, (ptrdiff_t *)flat);
  if (s->x_in_place) {
    x += s->first[0] * s->x[2] + s->first[1] * s->x[3] + s->first[2] * s->x[4];
  } else {
    sums.x_image = s->phases * s->channels * s->plane;
    for (ptrdiff_t n = 0; n < s->images; ++n)
      NAME(flatten_outer)(s, residue, x + n * s->x[0], flat + n * sums.x_image);
    x = flat;
    flat += s->images * sums.x_image;
  }
  if (!s->y_in_place) {
    sums.row = (s->kernels + VL - 1) / VL * VL;
    sums.rows_image = places * sums.row;
    for (ptrdiff_t n = 0; n < s->images; ++n)
      NAME(rows_of_dy)(s, dy + n * s->y[0], flat + n * sums.rows_image, sums.row);
    dy = flat;
  }
  for (ptrdiff_t k = 0; k < s->kernels; k += WIDTH) {
    ptrdiff_t kernels = least(WIDTH, s->kernels - k), v = NAME(wide_at)(k, s->kernels) / VL;
    for (ptrdiff_t r = 0; r < all; r += SCALARS) {
      ptrdiff_t count = least(SCALARS, all - r);
      NAME(outer_block)(count, v, &sums, x, offset + r, dy + k, NULL, tile);
      NAME(add_taps)(tile, count, kernels, dw + k * all + r, all);
    }
  }
}
