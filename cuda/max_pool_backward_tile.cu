// Gradient of max pooling with small windows: what max_pool_backward.cu computes, a tile of dx a thread.
//
//   dx[n, c, i] = sum of dy[n, c, o] over the windows o that read i with tap j, where argmax[n, c, o] == j
//
// A mask that names no tap of its window, or one in the padding, is no place of x and adds to none.
//
// Who computes what: a thread ROWS x COLUMNS places of one channel (channels first), or of VECTOR channels
// (channels last). It goes down the rows of dy and the mask, one at a time in registers. Which windows read which
// place of a tile is known when compiling: one addition each, and no division.
//
// Bytes per element of dx: one write; of dy and the mask, each element once from memory and about
// (ROWS + K1 - S1) / ROWS times from the cache; 16 bytes of dy at a time where rows and pointers allow.
//
// Fixed when compiled, besides: MASK, the mask's type, and what tile.cuh names.

#include "tile.cuh"

struct MaxPoolBackwardTile {
    Window window;  // from dy (in) to dx (out); before: of each tile's first place, as first_at has it
    Strides dy, argmax;
    INDEX items;
    Divisor channels;
    Tiles tiles;
};

extern "C" __global__ void __launch_bounds__(256, RESIDENT_BLOCKS)
    gpuconv_max_pool_backward_tile(const T *__restrict__ dy, const MASK *__restrict__ argmax, T *__restrict__ dx,
                                   const MaxPoolBackwardTile p) {
    FOR_ITEMS(item, p.items) {
        INDEX image = item, channel;
        const Tile tile = take_item(image, p.channels, p.tiles, channel);
        const T *gradient = dy + (image * p.dy.image + channel * p.dy.channel);
        const MASK *mask = argmax + (image * p.argmax.image + channel * p.argmax.channel);
        const int column = first_at(tile.column, 2, p.window);
        ACC sum[ROWS * COLUMNS * LANES];
#pragma unroll
        for (int i = 0; i < ROWS * COLUMNS * LANES; ++i) sum[i] = (ACC)0;
        for_rows(tile, p.window, [&](int a, int slice, int r, int row) {
            const bool there = (unsigned)row < (unsigned)p.window.in[1];
            ACC terms[READ_COLUMNS * LANES];
            int winners[READ_COLUMNS * LANES];
            read_row(gradient + step_to(slice, row, column, p.dy), there, column, p.dy, p.window, terms);
            read_row(mask + step_to(slice, row, column, p.argmax), there, column, p.argmax, p.window, winners);
            for_collected(a, r, [&](int i, int at, int tap) {
                if (winners[at] == tap) sum[i] += terms[at];
            });
        });
#pragma unroll
        for (int q = 0; q < ROWS; ++q)
            write_row(q, image, channel, tile, p.channels, p.window.out, dx, [&](int i) { return sum[i]; });
    }
}
