// Max pooling of small windows: what max_pool.cu computes, a tile of outputs a thread.
//
//   y[n, c, o] = max over taps j of x[n, c, o*S - before + j*D],   argmax[n, c, o] = the first j that holds it
//
// Maxima are separable, and so is the first place that holds one: first those of each row, of which neighbouring
// outputs share what they read, then over the rows, of which outputs above each other share the rows' maxima.
//
// Who computes what: a thread ROWS x COLUMNS outputs of one channel (channels first), or of VECTOR channels
// (channels last). It goes down the rows of x, one at a time in registers.
//
// Bytes per output: sizeof(T) and a mask's sizeof(MASK) written; of x, each element once from memory and about
// (ROWS + K1 - S1) / ROWS times from the cache; 16 at a time where rows and pointers allow.
//
// Fixed when compiled, besides: MASK (unsigned char up to 255 taps, else int), WITH_MASK, and what tile.cuh names.

#include "tile.cuh"

struct MaxPoolTile {
    Window window;
    Strides x;
    INDEX items;
    Divisor channels;
    Tiles tiles;
};

// The first tap of the window of output `out` that reads a place of x, along an axis.
__device__ __forceinline__ int first_inside(int out, int axis, const Window &window) {
    const int outside = window.before[axis] - out * stride(axis);
    return outside > 0 ? (outside + dilation(axis) - 1) / dilation(axis) : 0;
}

extern "C" __global__ void __launch_bounds__(256, RESIDENT_BLOCKS)
    gpuconv_max_pool_tile(const T *__restrict__ x, T *__restrict__ y, MASK *__restrict__ argmax,
                          const MaxPoolTile p) {
    FOR_ITEMS(item, p.items) {
        INDEX image = item, channel;
        const Tile tile = take_item(image, p.channels, p.tiles, channel);
        const T *plane = x + (image * p.x.image + channel * p.x.channel);
        const int column = first_at(tile.column, 2, p.window);
        // Where a window begins in the padding, its tap 0 is no place of x.
        const bool at_border = column < 0 || first_at(tile.row, 1, p.window) < 0 ||
                               (AXES > 2 && first_at(tile.slice, 0, p.window) < 0);
        ACC best[ROWS * COLUMNS * LANES];
        int where[ROWS * COLUMNS * LANES];
        if (K0 > 1)
#pragma unroll
            for (int i = 0; i < ROWS * COLUMNS * LANES; ++i) {
                best[i] = (ACC)minus_infinity();
                where[i] = 0;
            }
        const auto write = [&](int q) {
            for_results(q, image, channel, tile, p.channels, p.window.out, [&](int i, int t, INDEX offset) {
                Vector<T> values;
                Vector<MASK> first;
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    // Where all of a window is as low as padding, its first place counts.
                    if (WITH_MASK && at_border && best[i + v] == (ACC)minus_infinity()) {
                        const Place out = {{tile.slice, tile.row + q, tile.column + t + v / LANES}};
                        Place tap = {{0, 0, 0}};
#pragma unroll
                        for (int axis = FIRST_AXIS; axis < 3; ++axis)
                            tap.at[axis] = first_inside(out.at[axis], axis, p.window);
                        where[i + v] = flat_tap(tap);
                    }
                    values.lane[v] = (T)best[i + v];
                    first.lane[v] = (MASK)where[i + v];
                }
                store(y + offset, values);
                if (WITH_MASK) store(argmax + offset, first);
            });
        };
        for_rows(tile, p.window, [&](int a, int slice, int r, int row) {
            ACC values[READ_COLUMNS * LANES];
            read_row(plane + step_to(slice, row, column, p.x), (unsigned)row < (unsigned)p.window.in[1], column,
                     p.x, p.window, values, LOWEST);
#pragma unroll
            for (int i = 0; i < COLUMNS * LANES; ++i) {
                ACC highest = values[column_at(i / LANES, 0) * LANES + i % LANES];
                int tap = 0;
#pragma unroll
                for (int c = 1; c < K2; ++c) {
                    const ACC value = values[column_at(i / LANES, c) * LANES + i % LANES];
                    if (beats(value, highest)) {
                        highest = value;
                        tap = c;
                    }
                }
#pragma unroll
                for (int q = 0; q < ROWS; ++q)
#pragma unroll
                    for (int b = 0; b < K1; ++b) {
                        const int at = q * COLUMNS * LANES + i;
                        if (row_at(q, b) == r && ((K0 == 1 && b == 0) || beats(highest, best[at]))) {
                            best[at] = highest;
                            where[at] = (a * K1 + b) * K2 + tap;
                        }
                    }
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
