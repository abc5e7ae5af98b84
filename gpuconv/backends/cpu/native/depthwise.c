// Depthwise convolution: every channel is filtered alone.
//
//     y[n, c, p] = b[c] + sum over t of  w[c, t] * x[n, c, first + p * stride + t * dilation]
//     dw[c, t]  += sum over n, p of     dy[n, c, p] * x[n, c, first + p * stride + t * dilation]
//
// Vectors go along what is dense in memory: places of a row (channels first) or channels (channels last). A
// block is OUTPUTS vectors, of as many rows (or, channels last, neighbours in a row): along this axis, the
// block's axis, taps are taken two, three or five at a time, so that what is loaded serves as many outputs.
// Nothing is padded or copied: where a vector reaches beyond the image, only its lanes inside are loaded and
// multiplied.
#include "number.h"
#include "depthwise.h"
#include "shuffle.h"
#include "masks.h"

#define OUTPUTS 7  // images are often 7, 14, 28, 56 or 112 wide
#define BLOCKS_AHEAD 2
#define SHARING 5  // at most: with their weights, a load and the outputs, 16 registers suffice

// The lanes of a vector whose places, from `at` on, `stride` apart, lie within an axis.
INLINE void NAME(lanes_within)(ptrdiff_t at, ptrdiff_t stride, ptrdiff_t size, ptrdiff_t* begin,
                               ptrdiff_t* end) {
  if (stride == 1) {
    *begin = most(0, -at);
    *end = least(*end, size - at);
  } else {
    *begin = at >= 0 ? 0 : (-at + stride - 1) / stride;
    *end = at >= size ? 0 : least(*end, (size - 1 - at) / stride + 1);
  }
}

// The lanes of a vector of x that are there, and the memory they are in: `every` step of it, 1 or 2, else 0.
typedef struct {
  lanes set, low, high;
  ptrdiff_t begin, end, step;
} NAME(Places);

INLINE NAME(Places) NAME(places_read)(int every, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t step) {
  NAME(Places) r = {.set = among(begin, end), .begin = begin, .end = end, .step = step};
  if (every == 2) {
    ptrdiff_t first = 2 * begin, stop = most(0, 2 * end - 1);  // what lies behind the last may not be there
    r.low = among(least(first, VL), least(stop, VL));
    r.high = among(most(first - VL, 0), most(stop - VL, 0));
  }
  return r;
}

INLINE vec NAME(read_places)(int every, const T* from, const NAME(Places) * r) {
  if (every == 1) return load_lanes(from, r->set);
  if (every == 2) return NAME(even)(load_lanes(from, r->low), load_lanes(from + VL, r->high));
  vec part = {0};
  for (ptrdiff_t i = r->begin; i < r->end; ++i) part[i] = from[i * r->step];
  return part;
}

// One or more taps t, ..., of a block along its axis, at one tap across. Outputs are `hop` places apart if
// they share loads; a lone tap's are any number apart. `inside`: all that they read is in the image.
//
// Forward, w holds the weights and block the outputs; else block holds dy, and sums the sums, a vector a tap.
INLINE void NAME(some_taps)(int forward, int outputs, int taps, int hop, int last, int every, int inside,
                            const ChannelBlock* b, const T* x, ptrdiff_t at, ptrdiff_t unit,
                            const NAME(Places) * r, const T* w, T* sums, vec* block) {
  vec here[SHARING];
  UNROLL for (int t = 0; t < taps; ++t) {
    if (!forward)
      here[t] = load(sums + t * VL);
    else if (last)
      here[t] = inside ? load(w + t * b->apart) : load_lanes(w + t * b->apart, r->set);
    else
      here[t] = (vec){0} + w[t * b->apart];
  }
  x += at * b->pitch;
  UNROLL for (int q = 0; q <= hop * (outputs - 1) + taps - 1; ++q) {
    if (!inside && (size_t)(at + q * unit) >= (size_t)b->size) continue;
    const T* from = x + q * unit * b->pitch;
    vec v = last && inside ? load(from) : NAME(read_places)(every, from, r);
    UNROLL for (int t = 0; t < taps; ++t) {
      int o = (q - t) / hop;
      if (q < t || o >= outputs || o * hop != q - t) continue;
      vec *sum = forward ? block + o : here + t, other = forward ? here[t] : block[o];
      if (last && inside)
        *sum += v * other;
      else
        *sum = add_product(*sum, v, other, r->set);
    }
  }
  if (!forward) UNROLL for (int t = 0; t < taps; ++t) store(sums + t * VL, here[t]);
}

// All taps of a block, of one channel or vector of them.
INLINE void NAME(all_taps)(int forward, int outputs, int last, int every, int inside, const ChannelBlock* b,
                           const T* x, const T* w, T* sums, vec* block) {
  ptrdiff_t shared = b->dilation == 1 ? b->stride : 0;
  for (const AcrossTap* tap = b->taps; tap < b->taps + b->number; ++tap) {
    NAME(Places) r = NAME(places_read)(every, tap->begin, tap->end, b->step);
    ptrdiff_t t = 0;
#define SOME_TAPS(taps, hop, unit)                                                               \
  NAME(some_taps)(forward, outputs, taps, hop, last, every, inside, b, x + tap->x,               \
                  b->start + t * b->dilation, unit, &r, forward ? w + tap->w + t * b->apart : w, \
                  forward ? sums : sums + tap->sums + t * VL, block)
#define SHARED_TAPS(hop)                                                              \
  for (ptrdiff_t left; (left = b->kernel - t) >= 2;) {                                \
    if (left == SHARING)                                                              \
      SOME_TAPS(SHARING, hop, 1), t += SHARING;                                       \
    else if (left > 2)                                                                \
      SOME_TAPS(3, hop, 1), t += 3;                                                   \
    else                                                                              \
      SOME_TAPS(2, hop, 1), t += 2;                                                   \
  }
    if ((last || every == 1) && shared == 1) SHARED_TAPS(1)
    if ((last || every == 2) && shared == 2) SHARED_TAPS(2)
    for (; t < b->kernel; ++t) SOME_TAPS(1, 1, b->stride);
#undef SHARED_TAPS
#undef SOME_TAPS
  }
}

// Whether all is there that a block's taps along its axis read, and, channels last, all lanes are.
INLINE int NAME(is_inside)(int outputs, int last, const ChannelBlock* b) {
  ptrdiff_t end = b->start + (outputs - 1) * b->stride + (b->kernel - 1) * b->dilation;
  return b->start >= 0 && end < b->size && (!last || b->count == VL);
}

// Fetch what the next blocks of a row read first, channels last: for the processor it lies too far apart.
INLINE void NAME(fetch_ahead)(int outputs, const T* from, ptrdiff_t step) {
  UNROLL for (int o = 0; o < outputs; ++o) __builtin_prefetch(from + (BLOCKS_AHEAD * outputs + o) * step);
}

// The outputs of a block, a vector each, to y.
INLINE void NAME(forward_block)(int outputs, int last, int every, int inside, const ChannelBlock* b,
                                const T* x, const T* w, const T* bias, T* y) {
  for (ptrdiff_t i = 0; i < b->many; ++i, x += b->x, w += b->w, bias += b->b, y += b->y) {
    vec sum[OUTPUTS];
    UNROLL for (int o = 0; o < outputs; ++o) {
      if (last)
        sum[o] = load_lanes(bias, among(0, b->count));
      else
        sum[o] = (vec){0} + bias[0];
    }
    if (last && inside) NAME(fetch_ahead)(outputs, x + b->ahead + b->start * b->pitch, b->stride * b->pitch);
    NAME(all_taps)(1, outputs, last, every, inside, b, x, w, 0, sum);
    UNROLL for (int o = 0; o < outputs; ++o) store_lanes(y + o * b->row, sum[o], b->count);
  }
}

// A block's share of the gradient by the weights, to sums, [channels][taps][VL]; taps in the order d, across,
// along.
INLINE void NAME(gradient_block)(int outputs, int last, int every, int inside, const ChannelBlock* b,
                                 const T* x, const T* dy, ptrdiff_t dy_step, T* sums, ptrdiff_t sums_step) {
  NAME(Places) r = NAME(places_read)(1, 0, b->count, dy_step);
  for (ptrdiff_t i = 0; i < b->many; ++i, x += b->x, dy += b->y, sums += sums_step) {
    vec block[OUTPUTS];
    UNROLL for (int o = 0; o < outputs; ++o) {
      if (last || dy_step == 1)
        block[o] = load_lanes(dy + o * b->row, r.set);
      else
        block[o] = NAME(read_places)(0, dy + o * b->row, &r);
    }
    if (last && inside) {
      NAME(fetch_ahead)(outputs, x + b->ahead + b->start * b->pitch, b->stride * b->pitch);
      NAME(fetch_ahead)(outputs, dy, b->row);
    }
    NAME(all_taps)(0, outputs, last, every, inside, b, x, 0, sums, block);
  }
}

// How the vectors of x lie.
enum { NAME(LAST), NAME(DENSE), NAME(SECOND), NAME(ANY) };
INLINE int NAME(vectors_lie)(const Depthwise* s) {
  ptrdiff_t step = s->x[4] * s->stride[2];
  return s->last ? NAME(LAST) : step == 1 ? NAME(DENSE) : step == 2 ? NAME(SECOND) : NAME(ANY);
}

// The outputs of the next block, where so many are left.
INLINE int NAME(next_outputs)(int kind, ptrdiff_t left) {
  return kind == NAME(ANY) || left < 3 ? 1 : left < OUTPUTS ? 3 : OUTPUTS;
}

#define ALL_CASES(CASE)                                                                            \
  CASE(LAST, 1, 1, OUTPUTS)                                                                        \
  CASE(LAST, 1, 1, 3) CASE(LAST, 1, 1, 1) CASE(DENSE, 0, 1, OUTPUTS) CASE(DENSE, 0, 1, 3)          \
      CASE(DENSE, 0, 1, 1) CASE(SECOND, 0, 2, OUTPUTS) CASE(SECOND, 0, 2, 3) CASE(SECOND, 0, 2, 1) \
          CASE(ANY, 0, 0, 1)

#define FORWARD_CASE(way, last, every, outputs)                       \
  case NAME(way) * 8 + outputs:                                       \
    if (outputs == OUTPUTS && NAME(is_inside)(outputs, last, b))      \
      NAME(forward_block)(outputs, last, every, 1, b, x, w, bias, y); \
    else                                                              \
      NAME(forward_block)(outputs, last, every, 0, b, x, w, bias, y); \
    break;
#define GRADIENT_CASE(way, last, every, outputs)                                      \
  case NAME(way) * 8 + outputs:                                                       \
    if (outputs == OUTPUTS && NAME(is_inside)(outputs, last, b))                      \
      NAME(gradient_block)(outputs, last, every, 1, b, x, dy, step, sums, sums_step); \
    else                                                                              \
      NAME(gradient_block)(outputs, last, every, 0, b, x, dy, step, sums, sums_step); \
    break;

static void NAME(forward_case)(int kind, int outputs, const ChannelBlock* b, const T* x, const T* w,
                               const T* bias, T* y) {
  switch (kind * 8 + outputs) { ALL_CASES(FORWARD_CASE) }
}

static void NAME(gradient_case)(int kind, int outputs, const ChannelBlock* b, const T* x, const T* dy,
                                ptrdiff_t step, T* sums, ptrdiff_t sums_step) {
  switch (kind * 8 + outputs) { ALL_CASES(GRADIENT_CASE) }
}

// Write the taps across, for outputs at d and, across, from `at` on, of so many lanes; return how many there
// are.
INLINE ptrdiff_t NAME(taps_across)(const Depthwise* s, ptrdiff_t d, ptrdiff_t at, ptrdiff_t count,
                                   AcrossTap* taps) {
  const int along = s->last ? 2 : 1, across = s->last ? 1 : 2;
  AcrossTap* to = taps;
  for (ptrdiff_t i = 0; i < s->kernel[0]; ++i) {
    ptrdiff_t z = s->first[0] + d * s->stride[0] + i * s->dilation[0];
    if (z < 0 || z >= s->size[0]) continue;
    for (ptrdiff_t j = 0; j < s->kernel[across]; ++j) {
      ptrdiff_t p = s->first[across] + at * s->stride[across] + j * s->dilation[across];
      to->begin = 0, to->end = count;
      if (!s->last) NAME(lanes_within)(p, s->stride[2], s->size[2], &to->begin, &to->end);
      if (s->last ? p < 0 || p >= s->size[1] : to->begin >= to->end) continue;
      to->x = z * s->x[2] + p * s->x[2 + across];
      to->w = i * s->w[1] + j * s->w[1 + across];
      to->sums = (i * s->kernel[across] + j) * s->kernel[along] * VL;
      ++to;
    }
  }
  return to - taps;
}

// A block of `many` channels, or vectors of them, all but its place along the block's axis.
INLINE ChannelBlock NAME(block_across)(const Depthwise* s, const AcrossTap* taps, ptrdiff_t number,
                                       ptrdiff_t many, ptrdiff_t count) {
  const int along = s->last ? 2 : 1;
  ptrdiff_t channels = s->last ? VL : 1;
  return (ChannelBlock){.taps = taps,
                        .number = number,
                        .count = count,
                        .stride = s->stride[along],
                        .dilation = s->dilation[along],
                        .size = s->size[along],
                        .kernel = s->kernel[along],
                        .pitch = s->x[2 + along],
                        .apart = s->w[1 + along],
                        .step = s->x[4] * s->stride[2],
                        .many = many,
                        .x = channels * s->x[1],
                        .w = channels * s->w[0],
                        .y = channels * s->y[1],
                        .row = s->y[2 + along],
                        .ahead = number ? taps[number - 1].x : 0};
}

// Vectors of a row at a time, channels first: their taps are found once for all rows.
#define COLUMNS 16

// Where a block's outputs are not dense in y, or every other place of it, they go through tiles,
// [channels][outputs].
static void NAME(through_tiles)(int kind, int outputs, const Depthwise* s, int together,
                                const ChannelBlock* b, const T* x, const T* w, const T* bias, T* y,
                                T* tiles) {
  for (int i = 0; i < together; ++i) {
    ChannelBlock tile = b[i];
    tile.row = VL, tile.y = 2 * OUTPUTS * VL, tile.count = VL;
    NAME(forward_case)(kind, outputs, &tile, x, w + s[i].tap, bias, tiles + i * OUTPUTS * VL);
  }
  ptrdiff_t both = together == 2 ? b->count + b[1].count : 0;
  for (ptrdiff_t i = 0; i < b->many; ++i, tiles += 2 * OUTPUTS * VL, y += b->y) {
    for (int o = 0; o < outputs; ++o) {
      T* to = y + o * b->row;
      const T* even = tiles + o * VL;
      if (together == 2) {
        vec low = load(even), high = load(even + OUTPUTS * VL);
        store_lanes(to, NAME(low)(low, high), least(VL, both));
        if (both > VL) store_lanes(to + VL, NAME(high)(low, high), both - VL);
      } else {
        for (ptrdiff_t k = 0; k < b->count; ++k) to[k * s->y[4]] = even[k];
      }
    }
  }
}

// Channels first: rows h0..h1 of so many channels at one d, row after row of blocks, as they lie in memory.
static void NAME(first_rows)(const Depthwise* s, int together, ptrdiff_t many, ptrdiff_t d, ptrdiff_t h0,
                             ptrdiff_t h1, const T* x, const T* w, const T* bias, ptrdiff_t bias_step, T* y,
                             AcrossTap* taps, T* tiles) {
  ChannelBlock across[COLUMNS][2];
  int kind = NAME(vectors_lie)(s), outputs;
  for (ptrdiff_t p0 = 0, p1; p0 < s->box[2]; p0 = p1) {
    p1 = least(p0 + COLUMNS * VL, s->box[2]);
    AcrossTap* free = taps;
    for (ptrdiff_t p = p0; p < p1; p += VL) {
      for (int i = 0; i < together; ++i) {
        ptrdiff_t count = least(VL, s[i].box[2] - p), number = NAME(taps_across)(s + i, d, p, count, free);
        ChannelBlock* b = &across[(p - p0) / VL][i];
        *b = NAME(block_across)(s + i, free, number, many, count);
        b->b = bias_step;
        free += number;
      }
    }
    for (ptrdiff_t h = h0; h < h1; h += outputs) {
      outputs = NAME(next_outputs)(kind, h1 - h);
      for (ptrdiff_t p = p0; p < p1; p += VL) {
        ChannelBlock* b = across[(p - p0) / VL];
        for (int i = 0; i < together; ++i) b[i].start = s[i].first[1] + h * s[i].stride[1];
        T* to = y + s->place + d * s->y[2] + h * s->y[3] + p * s->y[4];
        if (together == 1 && s->y[4] == 1)
          NAME(forward_case)(kind, outputs, b, x, w + s->tap, bias, to);
        else
          NAME(through_tiles)(kind, outputs, s, together, b, x, w, bias, to, tiles);
      }
    }
  }
}

// Channels last: rows h0..h1 of all channels at one d.
static void NAME(last_rows)(const Depthwise* s, ptrdiff_t channels, ptrdiff_t d, ptrdiff_t h0, ptrdiff_t h1,
                            const T* x, const T* w, const T* bias, ptrdiff_t bias_step, T* y,
                            AcrossTap* taps) {
  ptrdiff_t whole = channels / VL, rest = channels % VL, done = whole * VL;
  int outputs;
  for (ptrdiff_t h = h0; h < h1; ++h) {
    ChannelBlock b = NAME(block_across)(s, taps, NAME(taps_across)(s, d, h, VL, taps), whole, VL);
    b.b = bias_step;
    for (ptrdiff_t p = 0; p < s->box[2]; p += outputs) {
      outputs = NAME(next_outputs)(NAME(LAST), s->box[2] - p);
      b.start = s->first[2] + p * s->stride[2];
      T* to = y + s->place + d * s->y[2] + h * s->y[3] + p * s->y[4];
      NAME(forward_case)(NAME(LAST), outputs, &b, x, w + s->tap, bias, to);
    }
    if (!rest) continue;
    b = NAME(block_across)(s, taps, NAME(taps_across)(s, d, h, rest, taps), 1, rest);
    for (ptrdiff_t p = 0; p < s->box[2]; p += outputs) {
      outputs = NAME(next_outputs)(NAME(LAST), s->box[2] - p);
      b.start = s->first[2] + p * s->stride[2];
      T* to = y + s->place + d * s->y[2] + h * s->y[3] + p * s->y[4];
      NAME(forward_case)(NAME(LAST), outputs, &b, x + done, w + s->tap + done, bias + (bias_step ? done : 0),
                         to + done);
    }
  }
}

// Channels whose small images are taken together, so that a block is described once for all of them.
#define CHANNELS_AT_ONCE 16
#define SMALL_IMAGE 1024  // elements

// Compute rows h0..h1 (of each phase) of some images and channels. x, w, b and y point at the first of these;
// b may be null. Phases are taken `together`, 1 or 2: 2 where they write every other place of the same rows.
// `taps` has room for COLUMNS times all taps.
EXPORT void NAME(depthwise)(const Depthwise* phases, ptrdiff_t number, ptrdiff_t together, ptrdiff_t images,
                            ptrdiff_t channels, ptrdiff_t h0, ptrdiff_t h1, const T* x, const T* w,
                            const T* b, T* y, ptrdiff_t* taps) {
  static const T zeros[VECTOR_BYTES / sizeof(T)] = {0};
  T tiles[CHANNELS_AT_ONCE * 2 * OUTPUTS * VECTOR_BYTES / sizeof(T)] __attribute__((aligned(64)));
  ptrdiff_t step = !b ? 0 : phases->last ? VL : 1, places = phases->size[1] * phases->size[2];
  if (!b) b = zeros;
  ptrdiff_t most_channels = phases->last ? channels : places < SMALL_IMAGE ? CHANNELS_AT_ONCE : 1;
  for (ptrdiff_t n = 0; n < images; ++n, x += phases->x[0], y += phases->y[0]) {
    for (ptrdiff_t c = 0, many; c < channels; c += many) {
      many = least(most_channels, channels - c);
      for (const Depthwise* s = phases; s < phases + number; s += together) {
        ptrdiff_t end = least(h1, s->box[1]);
        for (ptrdiff_t d = 0; d < s->box[0]; ++d) {
          if (s->last)
            NAME(last_rows)(s, channels, d, h0, end, x, w, b, step, y, (AcrossTap*)taps);
          else
            NAME(first_rows)(s, (int)together, many, d, h0, end, x + c * s->x[1], w + c * s->w[0],
                             b + c * step, step, y + c * s->y[1], (AcrossTap*)taps, tiles);
        }
      }
    }
  }
}

// Sums of one vector get no longer than this many, then they are added to dw.
#define LONGEST_SUM 2048

// Add the vectors of taps to dw and clear them.
static void NAME(add_taps)(const Depthwise* s, ptrdiff_t count, T* sums, T* dw) {
  const int along = s->last ? 2 : 1, across = s->last ? 1 : 2;
  for (ptrdiff_t d = 0; d < s->kernel[0]; ++d)
    for (ptrdiff_t i = 0; i < s->kernel[across]; ++i)
      for (ptrdiff_t t = 0; t < s->kernel[along]; ++t, sums += VL) {
        T* to = dw + d * s->w[1] + i * s->w[1 + across] + t * s->w[1 + along];
        if (s->last) {
          store_lanes(to, load_lanes(to, among(0, count)) + load(sums), count);
        } else {
          to[0] += add_lanes(load(sums));
        }
        store(sums, (vec){0});
      }
}

// Add rows h0..h1 of one image and `many` channels (or vectors of them, of `count` lanes) to sums.
static void NAME(gradient_rows)(const Depthwise* s, ptrdiff_t many, ptrdiff_t count, ptrdiff_t h0,
                                ptrdiff_t h1, const T* x, const T* dy, T* sums, AcrossTap* taps) {
  const int along = s->last ? 2 : 1, across = s->last ? 1 : 2;
  ptrdiff_t each = s->kernel[0] * s->kernel[1] * s->kernel[2] * VL, wide = s->last ? 1 : VL;
  ptrdiff_t low[3] = {0, h0, 0}, high[3] = {s->box[0], h1, s->box[2]};
  ChannelBlock blocks[COLUMNS];
  int kind = NAME(vectors_lie)(s), outputs;
  for (ptrdiff_t d = 0; d < high[0]; ++d) {
    for (ptrdiff_t q0 = low[across], q1; q0 < high[across]; q0 = q1) {
      q1 = least(q0 + (s->last ? 1 : COLUMNS * VL), high[across]);
      AcrossTap* free = taps;
      ChannelBlock* end = blocks;
      for (ptrdiff_t q = q0; q < q1; q += wide, ++end) {
        ptrdiff_t lane_count = s->last ? count : least(VL, q1 - q);
        ptrdiff_t number = NAME(taps_across)(s, d, q, lane_count, free);
        *end = NAME(block_across)(s, free, number, many, lane_count);
        free += number;
      }
      for (ptrdiff_t p = low[along]; p < high[along]; p += outputs) {
        outputs = NAME(next_outputs)(kind, high[along] - p);
        const T* from = dy + d * s->y[2] + q0 * s->y[2 + across] + p * s->y[2 + along];
        for (ChannelBlock* b = blocks; b < end; ++b, from += wide * s->y[2 + across]) {
          b->start = s->first[along] + p * s->stride[along];
          NAME(gradient_case)(kind, outputs, b, x, from, s->y[4], sums, each);
        }
      }
    }
  }
}

// Add the gradient by the weights, of rows h0..h1 of some images and channels, to dw. x, dy and dw point at
// the first of these; `sums` has room for `at_once` vectors a tap and one more, `taps` for COLUMNS times all
// taps.
EXPORT void NAME(depthwise_gradient)(const Depthwise* s, ptrdiff_t images, ptrdiff_t channels, ptrdiff_t h0,
                                     ptrdiff_t h1, const T* x, const T* dy, T* dw, T* sums, ptrdiff_t at_once,
                                     ptrdiff_t* taps) {
  ptrdiff_t each = s->kernel[0] * s->kernel[1] * s->kernel[2] * VL, wide = s->last ? VL : 1, many;
  ptrdiff_t places = s->size[1] * s->size[2];
  ptrdiff_t rows = most(1, LONGEST_SUM / most(1, s->last ? s->box[2] : (s->box[2] + VL - 1) / VL));
  while ((size_t)sums % VECTOR_BYTES) ++sums;  // else each of their loads waits for two stores
  for (ptrdiff_t i = 0; i < at_once * each; ++i) sums[i] = 0;
  for (ptrdiff_t c = 0; c < channels; c += many * wide) {
    ptrdiff_t whole = (channels - c) / wide, count = whole ? wide : channels - c, added = 0;
    many = whole ? least(whole, s->last || places < SMALL_IMAGE ? at_once : 1) : 1;
    for (ptrdiff_t n = 0; n < images; ++n) {
      for (ptrdiff_t h = h0, end; h < h1; h = end) {
        end = least(h1, h + rows);
        NAME(gradient_rows)(s, many, count, h, end, x + n * s->x[0] + c * s->x[1],
                            dy + n * s->y[0] + c * s->y[1], sums, (AcrossTap*)taps);
        added += end - h;
        if (added < rows && (n < images - 1 || end < h1)) continue;
        for (ptrdiff_t i = 0; i < many; ++i)
          NAME(add_taps)(s, count, sums + i * each, dw + (c + i * wide) * s->w[0]);
        added = 0;
      }
    }
  }
}
