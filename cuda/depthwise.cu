// Convolution of small groups, and its input gradient, straight from the image: no columns.
//
//   y[n, g, o, p] = b[g, o] + sum over c < C/G and taps j of w[g, o, c, j] * x[n, g, c, p*S - before + j*D]
//   dx[n, g, c, i] = b[g, c] + sum over o < K/G and taps j of w[g, o, c, j] * dy[n, g, o, (i + before - j*D) / S],
//                    where that is a whole number
//
// Below, "source" is what is read (x, or dy) and "result" what is written (y, or dx).
//
// Who computes what: a thread ROWS x COLUMNS places of one channel (channels first), or of VECTOR channels
// (channels last). It goes down the rows of its source, one at a time in registers, and adds each to the rows of the
// result that have a tap there.
//
// Bytes per result: one write; of the source, each element once from memory and (ROWS + K1 - 1) / ROWS times
// (COLUMNS + K2 - 1) / COLUMNS from the cache (stride 1); 16 at a time where rows and pointers allow.
//
// Fixed when compiled, besides: what tile.cuh and epilogue.cuh name.

#include "epilogue.cuh"
#include "tile.cuh"

enum { UNROLLED_ROWS = UNROLL_ROWS };

struct Depthwise {
    Window window;  // from source (in) to result (out); before: of each tile's first place, as first_at has it
    Strides source;
    INDEX items;
    Divisor channels;  // of the result, in vectors
    Tiles tiles;
    INDEX group, in, out, tap;  // strides of w: by group, channel of the source in it, of the result in it, tap
};

// The weights of a tap for the channels of a tile.
__device__ __forceinline__ void read_weights(const T *w, INDEX channel, const Depthwise &p, ACC *weights) {
#if CHANNELS_LAST
    if (!BACKWARD || ONE_TO_ONE) {  // they lie side by side
        const Loaded<T> some(true, w + channel);
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) weights[lane] = (ACC)some[lane];
        return;
    }
#endif
#pragma unroll
    for (int lane = 0; lane < LANES; ++lane)
        weights[lane] = (ACC)w[(channel + lane) / OUT * p.group + (channel + lane) % OUT * p.out];
}

// Add what a row of the source gives to the tile, the r-th of those that it reads; a tile of one row reads it for
// the r-th row of taps. w is of the tile's slice of taps.
__device__ __forceinline__ void add_row(int r, const ACC *values, const T *w, INDEX channel, const Depthwise &p,
                                        ACC *sum) {
    const int begin = ROWS > 1 ? 0 : r, end = ROWS > 1 ? K1 : r + 1;
#pragma unroll
    for (int q = 0; q < ROWS; ++q)
#pragma unroll
        for (int b = begin; b < end; ++b) {
            if (ROWS > 1 && row_at(q, b) != r) continue;
#pragma unroll
            for (int c = 0; c < K2; ++c) {
                ACC weights[LANES];
                read_weights(w + (b * K2 + c) * (CHANNELS_LAST ? p.tap : 1), channel, p, weights);
#pragma unroll
                for (int t = 0; t < COLUMNS; ++t) {
                    const int at = column_at(t, c);
                    if (at < 0) continue;
#pragma unroll
                    for (int lane = 0; lane < LANES; ++lane)
                        sum[(q * COLUMNS + t) * LANES + lane] +=
                            values[at * SOURCES + lane / SHARING] * weights[lane];
                }
            }
        }
}

extern "C" __global__ void __launch_bounds__(256, RESIDENT_BLOCKS)
    gpuconv_depthwise(const T *__restrict__ source, const T *__restrict__ w, const T *__restrict__ b,
                      T *__restrict__ result, const Depthwise p) {
    FOR_ITEMS(item, p.items) {
        INDEX image = item, channel;
        const Tile tile = take_item(image, p.channels, p.tiles, channel);
        ACC sum[ROWS * COLUMNS * LANES];
#pragma unroll
        for (int i = 0; i < ROWS * COLUMNS * LANES; ++i) sum[i] = (ACC)0;
        const INDEX together = channel / OUT * IN;  // the first channel of the source that belongs to them
        const int row = first_at(tile.row, 1, p.window), column = first_at(tile.column, 2, p.window);
        for (int in = 0; in < IN; ++in) {
            const T *plane = source + (image * p.source.image + (together + in) * p.source.channel);
#pragma unroll
            for (int a = 0; a < K0; ++a) {
                int slice;
                if (!slice_at(tile.slice, a, p.window, slice)) continue;
                const T *corner = plane + (slice * p.source.place[0] + row * p.source.place[1] +
                                           column * p.source.place[2]);
#pragma unroll UNROLLED_ROWS
                for (int r = 0; r < (ROWS > 1 ? READ_ROWS : K1); ++r) {
                    const int below = ROWS > 1 ? r : row_at(0, r);
                    ACC values[READ_COLUMNS * SOURCES];
                    read_row(corner + below * p.source.place[1],
                             (unsigned)(row + below) < (unsigned)p.window.in[1], column,
                             p.window.in[2], p.source.place[2], READ_COLUMNS, LEAD, SOURCES, ONE_TO_ONE,
                             IN * p.source.channel, values);
                    add_row(r, values, w + (in * p.in + a * (K1 * K2) * (CHANNELS_LAST ? p.tap : 1)), channel, p,
                            sum);
                }
            }
        }
#pragma unroll
        for (int q = 0; q < ROWS; ++q)
            write_row(q, image, channel, tile, p.channels, p.window.out, result,
                      [&](int i) { return finished(sum[i], b, channel + i % LANES); });
    }
}
