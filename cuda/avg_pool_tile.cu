// Average pooling with small windows: what avg_pool.cu computes, a tile of outputs a thread.
//
//   y[n, c, o] = (sum over taps j of x[n, c, o*S - before + j*D]) / (number of taps in low <= i < high)
//
// where low and high are the ends of x, or of its padding where that counts; or by a divisor that is given. Sums are
// separable: first over each row, of which neighbouring outputs share what they read, then over the rows.
//
// Who computes what: a thread ROWS x COLUMNS outputs of one channel (channels first), or of VECTOR channels
// (channels last). It goes down the rows of x, one at a time in registers. Divisors are counted at the borders alone.
//
// Bytes per output: one write; of x, each element once from memory and about (ROWS + K1 - S1) / ROWS times from the
// cache; 16 at a time where rows and pointers allow.
//
// Fixed when compiled, besides: what tile.cuh names.

#include "tile.cuh"

struct AvgPoolTile {
    Window window;
    Strides x;
    INDEX items;
    Divisor channels;
    Tiles tiles;
    Counted counted;
};

extern "C" __global__ void __launch_bounds__(256, RESIDENT_BLOCKS)
    gpuconv_avg_pool_tile(const T *__restrict__ x, T *__restrict__ y, const AvgPoolTile p) {
    FOR_ITEMS(item, p.items) {
        INDEX image = item, channel;
        const Tile tile = take_item(image, p.channels, p.tiles, channel);
        const T *plane = x + (image * p.x.image + channel * p.x.channel);
        const Place corner = {{tile.slice, tile.row, tile.column}};
        const Place start = first_read(corner, p.window);
        const bool whole = counts_all(start, p.counted);
        const ACC share = (ACC)1 / (ACC)(p.counted.divisor ? p.counted.divisor : TAPS);
        ACC sum[ROWS * COLUMNS * LANES];
#pragma unroll
        for (int i = 0; i < ROWS * COLUMNS * LANES; ++i) sum[i] = (ACC)0;
        const auto write = [&](int q) {
            for_results(q, image, channel, tile, p.channels, p.window.out, [&](int i, int t, INDEX offset) {
                Vector<T> values;
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    ACC own = share;
                    if (!whole) {
                        const Place out = {{tile.slice, tile.row + q, tile.column + t + v / LANES}};
                        own = (ACC)1 / (ACC)divisor_of(first_read(out, p.window), p.counted);
                    }
                    values.lane[v] = (T)(sum[i + v] * own);
                }
                store(y + offset, values);
            });
        };
        for_rows(tile, p.window, [&](int, int slice, int r, int row) {
            ACC values[READ_COLUMNS * LANES];
            read_row(plane + step_to(slice, row, start.at[2], p.x), (unsigned)row < (unsigned)p.window.in[1],
                     start.at[2], p.x, p.window, values);
#pragma unroll
            for (int i = 0; i < COLUMNS * LANES; ++i) {
                ACC total = values[column_at(i / LANES, 0) * LANES + i % LANES];
#pragma unroll
                for (int c = 1; c < K2; ++c) total += values[column_at(i / LANES, c) * LANES + i % LANES];
#pragma unroll
                for (int q = 0; q < ROWS; ++q)
#pragma unroll
                    for (int b = 0; b < K1; ++b)
                        if (row_at(q, b) == r) sum[q * COLUMNS * LANES + i] += total;
            }
            if (K0 == 1)  // each row as soon as it is done, so that few are kept
#pragma unroll
                for (int q = 0; q < ROWS; ++q)
                    if (row_at(q, K1 - 1) == r) write(q);
        });
        if (K0 > 1)
#pragma unroll
            for (int q = 0; q < ROWS; ++q) write(q);
    }
}
