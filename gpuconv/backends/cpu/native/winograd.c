// Convolution with 3x3 kernels by Winograd's F(4x4, 3x3): 36 multiplications for 16 outputs, not 144.
//
// A tile of 4x4 outputs reads 6x6 places d of x. With the matrices of Lavin and Gray (arXiv:1509.09308),
//
//     V = B^T d B      U = G w G^T      M[p][k] = sum over c of U[p][k, c] * V[p][c]      y = A^T M A + b
//
// where p numbers the 36 elements of a transformed tile: 36 products of matrices, [kernels, channels] by
// [channels, tiles]. Tiles are numbered through rows, columns and images, 48 at a time. Vectors run along
// tiles, or, where channels are neighbours in memory, along channels and kernels: then nothing is shuffled. In
// narrow images, whose rows of tiles don't fill vectors, they also do, and x and y are turned round on the way.
//
// An infinity in x, or an overflow here, spoils a tile wherever it stands in it; so images whose outputs are
// not all finite are marked, for another algorithm to compute.

#include "number.h"
#include "winograd.h"
#include "shuffle.h"

#define SUB 48                            // tiles at a time
#define WIDE (256 / (ptrdiff_t)sizeof(T))  // kernels of a block of U, where vectors run along them
#define NARROW 8                          // and where they run along tiles
#define LINE (6 * VL)
#define TURNED_TILES 4                    // of a row, where x or y is turned round for vectors along channels
#define TURNED_COLUMNS (4 * TURNED_TILES + 2)
#define CACHE_LINE (64 / (ptrdiff_t)sizeof(T))
// From one matrix of M to the next: off the powers of 2 that would crowd a cache's set.
#define M_NARROW ((ptrdiff_t)SUB * NARROW + 16)
#define M_WIDE ((ptrdiff_t)SUB * WIDE + 16)
#define ROWS (REGISTERS / 4)  // of a block of sums
#if REGISTERS == 32 && VECTOR_BYTES == 64
#define BLOCK_ROWS 6
#define BLOCK_VECTORS 4
#else
#define BLOCK_ROWS ROWS
#define BLOCK_VECTORS 3
#endif

INLINE void NAME(copy_bits)(T *to, const T *from, ptrdiff_t n) {  // n < VL
#define BITS(bits) \
  if (VL > (bits) && (n & (bits))) {                 \
    __builtin_memcpy(to, from, (bits) * sizeof(T));  \
    to += (bits);                                    \
    from += (bits);                                  \
  }
  BITS(8) BITS(4) BITS(2) BITS(1)
#undef BITS
}

INLINE void NAME(copy_run)(T *to, ptrdiff_t to_step, const T *from, ptrdiff_t step, ptrdiff_t n) {
  if (step == 1 && to_step == 1) {
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) store(to + i, load(from + i));
    NAME(copy_bits)(to + i, from + i, n - i);
  } else {
    for (ptrdiff_t i = 0; i < n; ++i) to[i * to_step] = from[i * step];
  }
}

// The transforms along one axis: B^T, G and A^T.
INLINE void NAME(image_axis)(const vec *d, ptrdiff_t step, vec *v) {
  vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  vec even = d4 - 4 * d2, odd = d3 - 4 * d1, near = d4 - d2, far = d3 - d1;
  v[0] = 4 * d0 - 5 * d2 + d4;
  v[1] = even + odd;
  v[2] = even - odd;
  v[3] = near + 2 * far;
  v[4] = near - 2 * far;
  v[5] = 4 * d1 - 5 * d3 + d5;
}

INLINE void NAME(kernel_axis)(vec g0, vec g1, vec g2, vec *u, ptrdiff_t step) {
  vec sum = (T)(-1. / 6) * (g0 + g2), far = (T)(1. / 24) * g0 + (T)(1. / 6) * g2;
  u[0] = (T)0.25 * g0;
  u[step] = sum - (T)(1. / 6) * g1;
  u[2 * step] = sum + (T)(1. / 6) * g1;
  u[3 * step] = far + (T)(1. / 12) * g1;
  u[4 * step] = far - (T)(1. / 12) * g1;
  u[5 * step] = g2;
}

INLINE void NAME(output_axis)(const vec *m, vec *y, ptrdiff_t step) {
  vec near = m[1] + m[2], lean = m[1] - m[2], far = m[3] + m[4], steep = m[3] - m[4];
  y[0] = m[0] + near + far;
  y[step] = lean + 2 * steep;
  y[2 * step] = near + 4 * far;
  y[3 * step] = lean + 8 * steep + m[5];
}

// Where a tile stands; and so many tiles from it on that are neighbours in a row.
typedef struct {
  ptrdiff_t image, row, column, run;
} NAME(Tiles);

INLINE NAME(Tiles) NAME(tiles_at)(const Winograd *s, ptrdiff_t tile, ptrdiff_t end) {
  ptrdiff_t row = tile / s->tiles[1], column = tile % s->tiles[1];
  ptrdiff_t run = least(least(VL, end - tile), s->tiles[1] - column);
  return (NAME(Tiles)){row / s->tiles[0], row % s->tiles[0], column, run};
}

// B^T d of some tiles of a row, columns still in their order: 6 lines, zero in the padding.
INLINE void NAME(image_lines)(const Winograd *s, const T *x, ptrdiff_t row, ptrdiff_t column,
                              ptrdiff_t columns, T *rows, T *lines) {
  static const T zeros[LINE];
  ptrdiff_t begin = least(columns, most(0, -column)), end = most(begin, least(columns, s->size[1] - column));
  ptrdiff_t inside = end - begin, direct = s->x[3] == 1 && inside >= VL;
  const T *from[6];
  UNROLL for (ptrdiff_t r = 0; r < 6; ++r) {
    ptrdiff_t h = row + r;
    from[r] = zeros;
    if (h >= 0 && h < s->size[0] && inside > 0) {
      const T *source = x + h * s->x[2] + (column + begin) * s->x[3];
      if (!direct) NAME(copy_run)(rows + r * LINE, 1, source, s->x[3], inside);
      from[r] = direct ? source : rows + r * LINE;
    }
  }
  for (ptrdiff_t q = 0; q < inside; q += VL) {
    if (direct) q = least(q, inside - VL);  // the last ones end where the row does
    vec d[6], v[6];
    UNROLL for (ptrdiff_t r = 0; r < 6; ++r) d[r] = load(from[r] + q);
    NAME(image_axis)(d, 1, v);
    UNROLL for (ptrdiff_t r = 0; r < 6; ++r) store(lines + r * LINE + begin + q, v[r]);
  }
  for (ptrdiff_t r = 0; r < 6; ++r) {
    for (ptrdiff_t q = 0; q < begin; ++q) lines[r * LINE + q] = 0;
    for (ptrdiff_t q = end; q < columns; ++q) lines[r * LINE + q] = 0;
  }
}

// V of at most SUB tiles, vectors along them: [36][channels][SUB].
static void NAME(image_by_tiles)(const Winograd *s, const T *x, ptrdiff_t tile0, ptrdiff_t tile1,
                                 ptrdiff_t c0, ptrdiff_t c1, T *v) {
  T lines[6 * LINE], rows[6 * LINE];
  for (ptrdiff_t i = 0; i < 6 * LINE; ++i) lines[i] = rows[i] = 0;
  for (ptrdiff_t c = c0; c < c1; ++c) {
    T *to = v + c * SUB;
    for (ptrdiff_t tile = tile0; tile < tile1;) {
      NAME(Tiles) at = NAME(tiles_at)(s, tile, tile1);
      NAME(image_lines)(s, x + at.image * s->x[0] + c * s->x[1], at.row * 4 - s->before[0],
                        at.column * 4 - s->before[1], at.run * 4 + 2, rows, lines);
      // What a vector holds beyond its tiles is written over by those that follow, in this channel or the
      // next; the last channel's must not go beyond SUB.
      ptrdiff_t room = SUB - (tile - tile0), whole = room >= VL || c + 1 < c1;
      for (ptrdiff_t r = 0; r < 6; ++r) {
        const T *line = lines + r * LINE;
        vec a0 = load(line), a1 = load(line + VL), a2 = load(line + 2 * VL), a3 = load(line + 3 * VL);
        vec even0 = NAME(even)(a0, a1), even1 = NAME(even)(a2, a3);
        vec odd0 = NAME(odd)(a0, a1), odd1 = NAME(odd)(a2, a3), d[6], t[6];
        d[0] = NAME(even)(even0, even1);
        d[1] = NAME(even)(odd0, odd1);
        d[2] = NAME(odd)(even0, even1);
        d[3] = NAME(odd)(odd0, odd1);
        d[4] = NAME(next)(d[0], load(line + 4 * VL));
        d[5] = NAME(next)(d[1], load(line + 4 * VL + 1));
        NAME(image_axis)(d, 1, t);
        T *target = to + r * 6 * s->plane;
        if (whole) {
          UNROLL for (int j = 0; j < 6; ++j) store(target + j * s->plane, t[j]);
        } else {
          T part[VECTOR_BYTES / sizeof(T)];
          UNROLL for (int j = 0; j < 6; ++j) {
            store(part, t[j]);
            NAME(copy_bits)(target + j * s->plane, part, room);
          }
        }
      }
      tile += at.run;
      to += at.run;
    }
  }
}

// Elements of a tile's channels in V, vectors along channels.
INLINE ptrdiff_t NAME(channel_row)(const Winograd *s) {
  return (s->channels + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
}

// V of a vector of channels of one tile, whose 6x6 places are d, columns first.
INLINE void NAME(image_tile)(const vec *d, ptrdiff_t plane, T *v) {
  vec columns[36];
  UNROLL for (int j = 0; j < 6; ++j) NAME(image_axis)(d + j * 6, 1, columns + j * 6);
  for (int i = 0; i < 6; ++i) {
    vec t[6];
    NAME(image_axis)(columns + i, 6, t);
    UNROLL for (int j = 0; j < 6; ++j) store(v + (i * 6 + j) * plane, t[j]);
  }
}

// V of at most SUB tiles, vectors along channels: [36][SUB][channels].
static void NAME(image_by_channels)(const Winograd *s, const T *x, ptrdiff_t tile0, ptrdiff_t tile1,
                                    ptrdiff_t c0, ptrdiff_t c1, T *v) {
  ptrdiff_t row = NAME(channel_row)(s);
  for (ptrdiff_t tile = tile0; tile < tile1; ++tile, v += row) {
    NAME(Tiles) at = NAME(tiles_at)(s, tile, tile + 1);
    ptrdiff_t h0 = at.row * 4 - s->before[0], w0 = at.column * 4 - s->before[1];
    const T *image = x + at.image * s->x[0];
    for (ptrdiff_t c = c0; c < c1; c += VL) {
      vec d[36];
      for (int j = 0; j < 6; ++j) {
        vec *column = d + j * 6;
        UNROLL for (int i = 0; i < 6; ++i) {
          ptrdiff_t h = h0 + i, w = w0 + j;
          column[i] = (vec){0};
          if (h >= 0 && h < s->size[0] && w >= 0 && w < s->size[1]) {
            const T *from = image + c + h * s->x[2] + w * s->x[3];
            if (c + VL <= s->channels) {
              column[i] = load(from);
            } else {
              T part[VECTOR_BYTES / sizeof(T)] = {0};
              NAME(copy_bits)(part, from, s->channels - c);
              column[i] = load(part);
            }
          }
        }
      }
      NAME(image_tile)(d, s->plane, v + c);
    }
  }
}

// The same where x is channels first: rows of a few tiles are turned round on the way.
static void NAME(image_turned)(const Winograd *s, const T *x, ptrdiff_t tile0, ptrdiff_t tile1, ptrdiff_t c0,
                               ptrdiff_t c1, T *v) {
  T lines[6 * TURNED_COLUMNS * VECTOR_BYTES / sizeof(T)] __attribute__((aligned(64)));
  ptrdiff_t row = NAME(channel_row)(s);
  for (ptrdiff_t tile = tile0; tile < tile1;) {
    NAME(Tiles) at = NAME(tiles_at)(s, tile, least(tile1, tile + TURNED_TILES));
    ptrdiff_t h = at.row * 4 - s->before[0], w = at.column * 4 - s->before[1], columns = at.run * 4 + 2;
    ptrdiff_t begin = least(columns, most(0, -w)), end = most(begin, least(columns, s->size[1] - w));
    for (ptrdiff_t c = c0; c < c1; c += VL) {
      const T *from = x + at.image * s->x[0] + c * s->x[1] + w;
      for (ptrdiff_t r = 0; r < 6; ++r) {
        T *line = lines + r * TURNED_COLUMNS * VL;
        ptrdiff_t inside = h + r >= 0 && h + r < s->size[0], last = inside ? end : begin;
        for (ptrdiff_t q = 0; q < begin; ++q) store(line + q * VL, (vec){0});
        for (ptrdiff_t q = begin; q < last; q += VL)
          NAME(turn)(line + q * VL, VL, from + (h + r) * s->x[2] + q, s->x[1], least(VL, s->channels - c),
                     least(VL, last - q));
        for (ptrdiff_t q = last; q < columns; ++q) store(line + q * VL, (vec){0});
      }
      for (ptrdiff_t i = 0; i < at.run; ++i) {
        vec d[36];
        UNROLL for (int j = 0; j < 36; ++j) d[j] = load(lines + (j % 6 * TURNED_COLUMNS + i * 4 + j / 6) * VL);
        NAME(image_tile)(d, s->plane, v + i * row + c);
      }
    }
    tile += at.run;
    v += at.run * row;
  }
}

INLINE void NAME(image)(const Winograd *s, const T *x, ptrdiff_t tile0, ptrdiff_t tile1, ptrdiff_t c0,
                        ptrdiff_t c1, T *v) {
  if (s->last && s->x[1] != 1) NAME(image_turned)(s, x, tile0, tile1, c0, c1, v);
  else if (s->last) NAME(image_by_channels)(s, x, tile0, tile1, c0, c1, v);
  else NAME(image_by_tiles)(s, x, tile0, tile1, c0, c1, v);
}

// Elements of V for SUB tiles, and of U for a block of kernels.
INLINE ptrdiff_t NAME(v_size)(const Winograd *s) { return 36 * s->plane; }
INLINE ptrdiff_t NAME(u_width)(const Winograd *s) { return s->last ? WIDE : NARROW; }
INLINE ptrdiff_t NAME(u_plane)(const Winograd *s) {
  return (s->channels * NAME(u_width)(s) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE + 16;
}

// U of a block of `width` kernels from k on, zeros behind the last: [36][channels][width].
static void NAME(weights)(const Winograd *s, const T *w, ptrdiff_t k0, T *u) {
  ptrdiff_t width = NAME(u_width)(s), plane = NAME(u_plane)(s);
  for (ptrdiff_t at = 0; at < s->channels * width; at += VL, u += VL) {
    vec g[9], t[18];
    ptrdiff_t c = at / width, k = k0 + at % width;
    if (width % VL == 0 && s->w[0] == 1 && k + VL <= s->kernels) {
      const T *from = w + k + c * s->w[1];
      UNROLL for (int j = 0; j < 9; ++j) g[j] = load(from + j / 3 * s->w[2] + j % 3 * s->w[3]);
    } else {
      T lanes[9 * VECTOR_BYTES / sizeof(T)] __attribute__((aligned(64)));
      for (ptrdiff_t i = 0; i < VL; ++i, ++k) {
        if (k == k0 + width) {
          k = k0;
          ++c;
        }
        const T *from = w + k * s->w[0] + c * s->w[1];
        if (c < s->channels && k < s->kernels) {
          UNROLL for (int j = 0; j < 9; ++j) lanes[j * VL + i] = from[j / 3 * s->w[2] + j % 3 * s->w[3]];
        } else {
          UNROLL for (int j = 0; j < 9; ++j) lanes[j * VL + i] = 0;
        }
      }
      UNROLL for (int j = 0; j < 9; ++j) g[j] = load(lanes + j * VL);
    }
    UNROLL for (int j = 0; j < 3; ++j) NAME(kernel_axis)(g[j], g[3 + j], g[6 + j], t + j, 3);
    UNROLL for (int i = 0; i < 6; ++i) {
      vec row[6];
      NAME(kernel_axis)(t[i * 3], t[i * 3 + 1], t[i * 3 + 2], row, 1);
      UNROLL for (int j = 0; j < 6; ++j) store(u + (i * 6 + j) * plane, row[j]);
    }
  }
}

// A block of the product: m rows of a, each element for v vectors of b. Steps lead from channel to channel.
INLINE void NAME(product)(int m, int v, ptrdiff_t channels, const T *restrict a, ptrdiff_t a_row,
                          ptrdiff_t a_step, const T *restrict b, ptrdiff_t b_step, T *restrict to, ptrdiff_t to_row) {
  vec sum[32];
  UNROLL for (int i = 0; i < m * v; ++i) sum[i] = (vec){0};
  for (ptrdiff_t c = 0; c < channels; ++c, a += a_step, b += b_step) {
    vec x[4];
    UNROLL for (int j = 0; j < v; ++j) x[j] = load(b + j * VL);
    UNROLL for (int i = 0; i < m; ++i) UNROLL for (int j = 0; j < v; ++j)
        sum[i * v + j] += a[i * a_row] * x[j];
  }
  UNROLL for (int i = 0; i < m; ++i) UNROLL for (int j = 0; j < v; ++j)
      store(to + i * to_row + j * VL, sum[i * v + j]);
}

// M of a block of kernels, along tiles: [36][NARROW][SUB].
static void NAME(multiply_by_tiles)(const Winograd *s, ptrdiff_t tiles, const T *u, const T *v, T *m) {
  ptrdiff_t plane = NAME(u_plane)(s), n = s->channels, vectors = (tiles + VL - 1) / VL;
  for (int p = 0; p < 36; ++p, u += plane, v += s->plane, m += M_NARROW)
    for (ptrdiff_t j = 0; j < vectors;) {
      ptrdiff_t here = vectors - j == 4 ? 2 : least(3, vectors - j);
      for (ptrdiff_t k = 0; k < NARROW; k += ROWS) {
        const T *a = u + k, *b = v + j * VL;
        T *to = m + k * SUB + j * VL;
        if (here == 3) NAME(product)(ROWS, 3, n, a, 1, NARROW, b, SUB, to, SUB);
        else if (here == 2) NAME(product)(ROWS, 2, n, a, 1, NARROW, b, SUB, to, SUB);
        else NAME(product)(ROWS, 1, n, a, 1, NARROW, b, SUB, to, SUB);
      }
      j += here;
    }
}

// M of a block of kernels, along them: [36][SUB][WIDE].
static void NAME(multiply_by_kernels)(const Winograd *s, ptrdiff_t tiles, ptrdiff_t kernels, const T *u,
                                      const T *v, T *m) {
  ptrdiff_t plane = NAME(u_plane)(s), n = s->channels, vectors = (kernels + VL - 1) / VL;
  ptrdiff_t row = NAME(channel_row)(s);
  for (int p = 0; p < 36; ++p, u += plane, v += s->plane, m += M_WIDE)
    for (ptrdiff_t j = 0; j < vectors;) {
      ptrdiff_t here = vectors - j == BLOCK_VECTORS + 1 ? 2 : least(BLOCK_VECTORS, vectors - j);
      for (ptrdiff_t t = 0; t < tiles; t += BLOCK_ROWS) {
        const T *a = v + t * row, *b = u + j * VL;
        T *to = m + t * WIDE + j * VL;
        if (here == 4) NAME(product)(BLOCK_ROWS, BLOCK_VECTORS, n, a, row, 1, b, WIDE, to, WIDE);
        else if (here == 3) NAME(product)(BLOCK_ROWS, 3, n, a, row, 1, b, WIDE, to, WIDE);
        else if (here == 2) NAME(product)(BLOCK_ROWS, 2, n, a, row, 1, b, WIDE, to, WIDE);
        else NAME(product)(BLOCK_ROWS, 1, n, a, row, 1, b, WIDE, to, WIDE);
      }
      j += here;
    }
}

// A^T M A + b of a vector of tiles or kernels, its 36 elements a plane apart: y, [4][4].
INLINE void NAME(output)(const T *m, ptrdiff_t plane, T bias, vec *y) {
  vec t[24];
  UNROLL for (int i = 0; i < 6; ++i) {
    vec row[6];
    UNROLL for (int j = 0; j < 6; ++j) row[j] = load(m + (i * 6 + j) * plane);
    NAME(output_axis)(row, t + i, 6);
  }
  UNROLL for (int j = 0; j < 4; ++j) NAME(output_axis)(t + j * 6, y + j, 4);
  UNROLL for (int i = 0; i < 16; ++i) y[i] += bias;
}

// Tell of sums of 0 * y whether all y were finite, of the first n lanes.
INLINE int NAME(finite)(vec zero, ptrdiff_t n) {
  T lanes[VECTOR_BYTES / sizeof(T)], sum = 0;
  store(lanes, zero);
  for (ptrdiff_t i = 0; i < n; ++i) sum += lanes[i];
  return sum == 0;
}

static void NAME(output_by_tiles)(const Winograd *s, ptrdiff_t tile0, ptrdiff_t tile1, ptrdiff_t kernels,
                                  const T *m, const T *bias, T *y, ptrdiff_t *spoiled) {
  for (ptrdiff_t tile = tile0; tile < tile1;) {
    NAME(Tiles) at = NAME(tiles_at)(s, tile, tile1);
    ptrdiff_t columns = least(4 * at.run, s->out[1] - 4 * at.column), rows = least(4, s->out[0] - 4 * at.row);
    T *to = y + at.image * s->y[0] + at.row * 4 * s->y[2] + at.column * 4 * s->y[3];
    vec zero = {0};
    for (ptrdiff_t k = 0; k < kernels; ++k, to += s->y[1]) {
      vec out[16];
      NAME(output)(m + k * SUB + tile - tile0, M_NARROW, bias ? bias[k] : 0, out);
      UNROLL for (int i = 0; i < 16; ++i) zero += 0 * out[i];
      UNROLL for (int r = 0; r < 4; ++r) {
        if (r >= rows) break;
        vec *q = out + r * 4, run[4];
        vec low = NAME(low)(q[0], q[2]), high = NAME(high)(q[0], q[2]);
        vec odd_low = NAME(low)(q[1], q[3]), odd_high = NAME(high)(q[1], q[3]);
        run[0] = NAME(low)(low, odd_low);
        run[1] = NAME(high)(low, odd_low);
        run[2] = NAME(low)(high, odd_high);
        run[3] = NAME(high)(high, odd_high);
        T *line = to + r * s->y[2];
        if (s->y[3] == 1) {
          UNROLL for (int j = 0; j < 4; ++j) {
            ptrdiff_t there = columns - j * VL;
            if (there >= VL) {
              store(line + j * VL, run[j]);
            } else if (there > 0) {
              T part[VECTOR_BYTES / sizeof(T)];
              store(part, run[j]);
              NAME(copy_bits)(line + j * VL, part, there);
            }
          }
        } else {
          T part[4 * VECTOR_BYTES / sizeof(T)];
          UNROLL for (int j = 0; j < 4; ++j) store(part + j * VL, run[j]);
          for (ptrdiff_t q = 0; q < columns; ++q) line[q * s->y[3]] = part[q];
        }
      }
    }
    if (!NAME(finite)(zero, at.run)) spoiled[at.image] = 1;
    tile += at.run;
  }
}

static void NAME(output_by_kernels)(const Winograd *s, ptrdiff_t tile0, ptrdiff_t tile1, ptrdiff_t kernels,
                                    const T *m, const T *bias, T *y, ptrdiff_t *spoiled) {
  for (ptrdiff_t tile = tile0; tile < tile1; ++tile, m += WIDE) {
    NAME(Tiles) at = NAME(tiles_at)(s, tile, tile + 1);
    ptrdiff_t columns = least(4, s->out[1] - 4 * at.column), rows = least(4, s->out[0] - 4 * at.row);
    T *to = y + at.image * s->y[0] + at.row * 4 * s->y[2] + at.column * 4 * s->y[3];
    for (ptrdiff_t k = 0; k < kernels; k += VL) {
      vec out[16], zero = {0};
      ptrdiff_t there = least(VL, kernels - k);
      NAME(output)(m + k, M_WIDE, 0, out);
      T part[VECTOR_BYTES / sizeof(T)] = {0};
      if (bias && there == VL) {
        UNROLL for (int i = 0; i < 16; ++i) out[i] += load(bias + k);
      } else if (bias) {
        NAME(copy_bits)(part, bias + k, there);
        UNROLL for (int i = 0; i < 16; ++i) out[i] += load(part);
      }
      UNROLL for (int i = 0; i < 16; ++i) zero += 0 * out[i];
      UNROLL for (int i = 0; i < 16; ++i) {
        if (i / 4 < rows && i % 4 < columns) {
          T *place = to + k + i / 4 * s->y[2] + i % 4 * s->y[3];
          if (there == VL) {
            store(place, out[i]);
          } else {
            store(part, out[i]);
            NAME(copy_bits)(place, part, there);
          }
        }
      }
      if (!NAME(finite)(zero, there)) spoiled[at.image] = 1;
    }
  }
}

// The same where y is channels first: rows of a few tiles are turned round on the way.
static void NAME(output_turned)(const Winograd *s, ptrdiff_t tile0, ptrdiff_t tile1, ptrdiff_t kernels,
                                const T *m, const T *bias, T *y, ptrdiff_t *spoiled) {
  T lines[4 * TURNED_COLUMNS * VECTOR_BYTES / sizeof(T)] __attribute__((aligned(64)));
  for (ptrdiff_t tile = tile0; tile < tile1;) {
    NAME(Tiles) at = NAME(tiles_at)(s, tile, least(tile1, tile + TURNED_TILES));
    ptrdiff_t columns = least(4 * at.run, s->out[1] - 4 * at.column), rows = least(4, s->out[0] - 4 * at.row);
    T *to = y + at.image * s->y[0] + at.row * 4 * s->y[2] + at.column * 4;
    for (ptrdiff_t k = 0; k < kernels; k += VL) {
      ptrdiff_t there = least(VL, kernels - k);
      vec zero = {0}, b = bias ? load_part(bias + k, there) : (vec){0};
      for (ptrdiff_t i = 0; i < at.run; ++i) {
        vec out[16];
        NAME(output)(m + i * WIDE + k, M_WIDE, 0, out);
        UNROLL for (int j = 0; j < 16; ++j) {
          out[j] += b;
          zero += 0 * out[j];
          store(lines + (j / 4 * TURNED_COLUMNS + i * 4 + j % 4) * VL, out[j]);
        }
      }
      if (!NAME(finite)(zero, there)) spoiled[at.image] = 1;
      for (ptrdiff_t r = 0; r < rows; ++r)
        for (ptrdiff_t q = 0; q < columns; q += VL)
          NAME(turn)(to + k * s->y[1] + r * s->y[2] + q, s->y[1], lines + (r * TURNED_COLUMNS + q) * VL, VL,
                     least(VL, columns - q), there);
    }
    tile += at.run;
    m += at.run * WIDE;
  }
}

// Write U of kernels k0..k1, the first of a block; w points at the group's first kernel, u at U of kernel k0.
EXPORT void NAME(winograd_weights)(const Winograd *s, const T *w, ptrdiff_t k0, ptrdiff_t k1, T *u) {
  ptrdiff_t width = NAME(u_width)(s);
  for (ptrdiff_t k = k0; k < k1; k += width, u += 36 * NAME(u_plane)(s)) NAME(weights)(s, w, k, u);
}

// Write V of these tiles and channels; x points at the first image and the group's first channel.
EXPORT void NAME(winograd_image)(const Winograd *s, const T *x, ptrdiff_t tile0, ptrdiff_t tile1,
                                 ptrdiff_t c0, ptrdiff_t c1, T *v) {
  for (ptrdiff_t tile = tile0; tile < tile1; tile += SUB, v += NAME(v_size)(s))
    NAME(image)(s, x, tile, least(tile1, tile + SUB), c0, c1, v);
}

// Write y of tiles tile0..tile1 and kernels k0..k1, k0 the first of a block. V is computed from x, SUB tiles
// at a time, where x is given; else it is there for all these tiles. U is there from kernel k0 on where w is
// not given, else computed, a block at a time. Pointers point at the first image, and at the group's first
// channel or kernel; `m` is for M.
EXPORT void NAME(winograd)(const Winograd *s, const T *x, const T *w, const T *bias, ptrdiff_t tile0,
                           ptrdiff_t tile1, ptrdiff_t k0, ptrdiff_t k1, T *u, T *v, T *m, T *y, ptrdiff_t *spoiled) {
  ptrdiff_t width = NAME(u_width)(s), u_size = 36 * NAME(u_plane)(s);
  ptrdiff_t chunk = x ? SUB : tile1 - tile0;
  for (ptrdiff_t first = tile0; first < tile1; first += chunk) {
    ptrdiff_t end = least(tile1, first + chunk);
    if (x) NAME(image)(s, x, first, end, 0, s->channels, v);
    for (ptrdiff_t k = k0; k < k1; k += width) {
      ptrdiff_t kernels = least(width, k1 - k);
      T *u_here = w ? u : u + (k - k0) / width * u_size;
      if (w) NAME(weights)(s, w, k, u);
      for (ptrdiff_t tile = first; tile < end; tile += SUB) {
        const T *v_here = v + (tile - first) / SUB * NAME(v_size)(s);
        ptrdiff_t last = least(end, tile + SUB);
        T *to = y + k * s->y[1];
        const T *b = bias ? bias + k : 0;
        if (s->last) {
          NAME(multiply_by_kernels)(s, last - tile, kernels, u_here, v_here, m);
          if (s->y[1] == 1) NAME(output_by_kernels)(s, tile, last, kernels, m, b, to, spoiled);
          else NAME(output_turned)(s, tile, last, kernels, m, b, to, spoiled);
        } else {
          NAME(multiply_by_tiles)(s, last - tile, u_here, v_here, m);
          NAME(output_by_tiles)(s, tile, last, kernels, m, b, to, spoiled);
        }
      }
    }
  }
}
