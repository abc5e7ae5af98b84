// Gradient of average pooling with small windows: what avg_pool_backward.cu computes, a tile of dx a thread.
//
//   dx[n, c, i] = sum over the windows o that read i of dy[n, c, o] / (number of o's taps in low <= i < high)
//
// where low and high are the ends of x, or of its padding where that counts; or by a divisor that is given.
//
// Who computes what: a thread ROWS x COLUMNS places of one channel (channels first), or of VECTOR channels
// (channels last). It goes down the rows of dy, one at a time in registers. Which windows read which place of a tile
// is known when compiling. Divisors are counted at the borders alone.
//
// Bytes per element of dx: one write; of dy, each element once from memory and about (ROWS + K1 - S1) / ROWS times
// from the cache; 16 at a time where rows and pointers allow.
//
// Fixed when compiled, besides: what tile.cuh names.

#include "tile.cuh"

struct AvgPoolBackwardTile {
    Window window;  // from dy (in) to dx (out); before: of each tile's first place, as first_at has it
    Strides dy;
    INDEX items;
    Divisor channels;
    Tiles tiles;
    Counted counted;  // from where window 0 begins
};

extern "C" __global__ void __launch_bounds__(256, RESIDENT_BLOCKS)
    gpuconv_avg_pool_backward_tile(const T *__restrict__ dy, T *__restrict__ dx, const AvgPoolBackwardTile p) {
    FOR_ITEMS(item, p.items) {
        INDEX image = item, channel;
        const Tile tile = take_item(image, p.channels, p.tiles, channel);
        const T *gradient = dy + (image * p.dy.image + channel * p.dy.channel);
        const int column = first_at(tile.column, 2, p.window);
        const Place start = {{0, first_at(tile.row, 1, p.window) * S1, column * S2}};
        const bool whole = AXES < 3 && counts_all(start, p.counted);
        const ACC share = (ACC)1 / (ACC)(p.counted.divisor ? p.counted.divisor : TAPS);
        ACC sum[ROWS * COLUMNS * LANES];
#pragma unroll
        for (int i = 0; i < ROWS * COLUMNS * LANES; ++i) sum[i] = (ACC)0;
        for_rows(tile, p.window, [&](int a, int slice, int r, int row) {
            const bool there = (unsigned)row < (unsigned)p.window.in[1];
            ACC terms[READ_COLUMNS * LANES];
            read_row(gradient + step_to(slice, row, column, p.dy), there, column, p.dy, p.window, terms);
#pragma unroll
            for (int t = 0; t < READ_COLUMNS; ++t) {  // before they are added up: a sum might be too large
                ACC own = share;
                if (!whole) {
                    const Place begin = {{slice * S0, row * S1, (column + t) * S2}};
                    const bool counts = there && (unsigned)(column + t) < (unsigned)p.window.in[2];
                    own = counts ? (ACC)1 / (ACC)divisor_of(begin, p.counted) : (ACC)0;
                }
#pragma unroll
                for (int lane = 0; lane < LANES; ++lane) terms[t * LANES + lane] *= own;
            }
            for_collected(a, r, [&](int i, int at, int) { sum[i] += terms[at]; });
        });
#pragma unroll
        for (int q = 0; q < ROWS; ++q)
            write_row(q, image, channel, tile, p.channels, p.window.out, dx, [&](int i) { return sum[i]; });
    }
}
