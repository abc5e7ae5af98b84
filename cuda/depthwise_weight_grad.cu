// Weight gradient of a convolution of small groups, first of two stages: sums over parts of the batch.
//
//   partial[part, g, o, c, j] = sum over the images and places (n, p) of this part of
//                               dy[n, g, o, p] * x[n, g, c, p*S - before + j*D]
//
// The second stage, sum_parts.cu, adds the parts. Neither has atomics; the cuts depend on shape and workspace limit
// alone, so a sum is the same every time.
//
// Who computes what: a block a part of one pair (o, c) of channels (channels first), or of up to 32 vectors of
// o, side by side, with one c each (channels last). Its threads take tile after tile of dy, hold it in registers,
// go down the rows of x below it, and add to the sums of all taps, which stay in registers too; or, where those of
// a vector of channels are too many (SPLIT), of one row of taps, with a thread for each row. Then they add up theirs
// through shared memory.
//
// Bytes: dy and x once from memory; x (ROWS + K1 - 1) / ROWS times (COLUMNS + K2 - 1) / COLUMNS from the cache
// (stride 1).
//
// Fixed when compiled, besides: SPLIT, and what tile.cuh names, with BACKWARD 0.

#include "tile.cuh"

struct DepthwiseWeightGrad {
    Window window;
    Strides x, dy;
    INDEX total, length;  // tiles of the batch, and of a part
    Tiles tiles;
    INDEX blocks, channels;    // blocks of a part; channels of dy
    INDEX in, out, tap, size;  // strides of dw: by c, by o, by tap; and its elements
    int across;                // threads side by side: vectors of o (channels last), or 1
};

#define TAP_ROWS (SPLIT ? K0 * K1 : 1)        // threads that share the taps
#define SUMS ((SPLIT ? K2 : TAPS) * LANES)    // of a thread

// Add to the sums of a row of taps what a row of dy gives, of so many places, with the row of x that they read. Places
// beyond are left out: zeros in their stead would make NaN of an infinity in x.
__device__ __forceinline__ void add_row(const ACC *values, const ACC *gradient, int places, ACC *sum) {
#pragma unroll
    for (int t = 0; t < COLUMNS; ++t)
        if (t / PLACES * PLACES < places)
#pragma unroll
            for (int i = 0; i < K2 * LANES; ++i)
                sum[i] += values[column_at(t, i / LANES) * SOURCES + i % LANES / SHARING] *
                          gradient[t * LANES + i % LANES];
}

// Read what a tile needs of a row of x, from this column on.
__device__ __forceinline__ void read_x(const T *x, int slice, int row, int column, const DepthwiseWeightGrad &p,
                                       ACC *values) {
    read_row(x + (slice * p.x.place[0] + row * p.x.place[1] + column * p.x.place[2]),
             (unsigned)row < (unsigned)p.window.in[1], column, p.window.in[2], p.x.place[2], READ_COLUMNS, LEAD,
             SOURCES, ONE_TO_ONE, IN * p.x.channel, values);
}

// Add to the thread's sums what a tile of dy gives with the x below it; `taps` is the thread's row of them.
__device__ __forceinline__ void add_tile(const T *x, const T *dy, const Tile &tile, int taps,
                                         const DepthwiseWeightGrad &p, ACC *sum) {
    ACC gradient[ROWS * COLUMNS * LANES], values[READ_COLUMNS * SOURCES];
    dy += tile.slice * p.dy.place[0] + tile.row * p.dy.place[1] + tile.column * p.dy.place[2];
#pragma unroll
    for (int q = 0; q < ROWS; ++q)
        read_row(dy + q * p.dy.place[1], tile.row + q < p.window.out[1], tile.column, p.window.out[2], p.dy.place[2],
                 COLUMNS, 0, LANES, true, 0, gradient + q * COLUMNS * LANES);
    const int row = first_at(tile.row, 1, p.window), column = first_at(tile.column, 2, p.window);
    const int rows = p.window.out[1] - tile.row, places = p.window.out[2] - tile.column;
    int slice;
#if SPLIT  // tiles have one row
    if (!slice_at(tile.slice, taps / K1, p.window, slice)) return;
    read_x(x, slice, row + row_at(0, taps % K1), column, p, values);
    add_row(values, gradient, places, sum);
#else
#pragma unroll
    for (int a = 0; a < K0; ++a) {
        if (!slice_at(tile.slice, a, p.window, slice)) continue;
#pragma unroll
        for (int r = 0; r < READ_ROWS; ++r) {
            read_x(x, slice, row + r, column, p, values);
#pragma unroll
            for (int q = 0; q < ROWS; ++q)
#pragma unroll
                for (int b = 0; b < K1; ++b)
                    if (row_at(q, b) == r && q < rows)
                        add_row(values, gradient + q * COLUMNS * LANES, places, sum + (a * K1 + b) * K2 * LANES);
        }
    }
#endif
}

// Sums that the threads of a block add up at a time.
#define TOGETHER 16

// Add up the sums of threads that are `apart`, into the first of them, half of the rows to the other half.
__device__ __forceinline__ void add_rows(ACC *shared, int count, int apart) {
    const int thread = (int)threadIdx.x, threads = (int)blockDim.x, row = thread / apart;
    for (int rows = threads / apart; rows > 1;) {
        const int half = (rows + 1) / 2;
        __syncthreads();
        if (row + half < rows)
            for (int i = 0; i < count; ++i)
                shared[i * threads + thread] += shared[i * threads + thread + half * apart];
        rows = half;
    }
}

extern "C" __global__ void __launch_bounds__(256, RESIDENT_BLOCKS)
    gpuconv_depthwise_weight_grad(const T *__restrict__ dy, const T *__restrict__ x, ACC *__restrict__ partial,
                                  const DepthwiseWeightGrad p) {
    SHARED(ACC, shared);
    const int thread = (int)threadIdx.x, threads = (int)blockDim.x, apart = p.across * TAP_ROWS;
    const int row = thread / apart, rows = threads / apart, taps = thread % apart / p.across;
    const INDEX part = blockIdx.x / p.blocks, block = blockIdx.x % p.blocks;
    const INDEX in = block % IN, channel = (block / IN * p.across + thread % p.across) * LANES;
    const INDEX begin = part * p.length, end = begin + p.length < p.total ? begin + p.length : p.total;
    const bool works = row < rows && channel < p.channels;
    ACC sum[SUMS];
#pragma unroll
    for (int i = 0; i < SUMS; ++i) sum[i] = (ACC)0;
    if (works)
        for (INDEX number = begin + row; number < end; number += rows) {
            INDEX image = number;
            const Tile tile = take_tile(image, p.tiles);
            add_tile(x + (image * p.x.image + (channel / OUT * IN + in) * p.x.channel),
                     dy + (image * p.dy.image + channel * p.dy.channel), tile, taps, p, sum);
        }
    for (int from = 0; from < SUMS; from += TOGETHER) {
        const int count = from + TOGETHER < SUMS ? TOGETHER : SUMS - from;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < SUMS; ++i)  // all of them, as registers have no index
            if (i >= from && i < from + TOGETHER) shared[(i - from) * threads + thread] = sum[i];
        add_rows(shared, count, apart);
        if (works && row == 0)
            for (int i = from; i < from + count; ++i)
                partial[part * p.size + (channel + i % LANES) * p.out + in * p.in +
                        (taps * K2 + i / LANES) * p.tap] = shared[(i - from) * threads + thread];
    }
}
