// Weight gradient of a convolution of small groups, first of two stages: sums over parts of the batch.
//
//   partial[part, g, o, c, j] = sum over the images and places (n, p) of this part of
//                               dy[n, g, o, p] * x[n, g, c, p*S - before + j*D]
//
// The second stage, sum_parts.cu, adds the parts. Neither has atomics; the cuts depend on the shape alone, so a sum
// is the same every time.
//
// Who computes what: a block a part of one pair (o, c) of channels (channels first), or of up to 32 vectors of
// o, side by side, with one c each (channels last). Its threads take tile after tile of dy, hold it in registers,
// go down the rows of x below it, and add to the sums of all taps, which stay in registers. Then they
// add up theirs through shared memory.
//
// Bytes: dy and x once from memory; x (ROWS + K1 - 1) / ROWS times (COLUMNS + K2 - 1) / COLUMNS from the cache
// (stride 1).
//
// Fixed when compiled, besides: what tile.cuh names, with BACKWARD 0.

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

// Add to the sums of all taps what a tile of dy gives with the x below it.
__device__ __forceinline__ void add_tile(const T *x, const T *dy, const Tile &tile, const DepthwiseWeightGrad &p,
                                         ACC *sum) {
    ACC gradient[ROWS * COLUMNS * LANES];
    dy += tile.slice * p.dy.place[0] + tile.row * p.dy.place[1] + tile.column * p.dy.place[2];
#pragma unroll
    for (int q = 0; q < ROWS; ++q)
        read_row(dy + q * p.dy.place[1], tile.row + q < p.window.out[1], tile.column, p.window.out[2], p.dy.place[2],
                 COLUMNS, 0, LANES, true, 0, gradient + q * COLUMNS * LANES);
    const int row = first_at(tile.row, 1, p.window), column = first_at(tile.column, 2, p.window);
#pragma unroll
    for (int a = 0; a < K0; ++a) {
        int slice;
        if (!slice_at(tile.slice, a, p.window, slice)) continue;
        const T *corner = x + (slice * p.x.place[0] + row * p.x.place[1] + column * p.x.place[2]);
#pragma unroll
        for (int r = 0; r < READ_ROWS; ++r) {
            ACC values[READ_COLUMNS * SOURCES];
            read_row(corner + r * p.x.place[1], (unsigned)(row + r) < (unsigned)p.window.in[1], column,
                     p.window.in[2], p.x.place[2], READ_COLUMNS, LEAD, SOURCES, ONE_TO_ONE, IN * p.x.channel, values);
#pragma unroll
            for (int q = 0; q < ROWS; ++q)
#pragma unroll
                for (int b = 0; b < K1; ++b) {
                    if (row_at(q, b) != r) continue;
#pragma unroll
                    for (int i = 0; i < K2 * COLUMNS * LANES; ++i) {
                        const int lane = i % LANES, t = i / LANES % COLUMNS, c = i / (LANES * COLUMNS);
                        sum[((a * K1 + b) * K2 + c) * LANES + lane] +=
                            values[column_at(t, c) * SOURCES + lane / SHARING] *
                            gradient[(q * COLUMNS + t) * LANES + lane];
                    }
                }
        }
    }
}

// Sums that the threads of a block add up at a time.
#define TOGETHER 16

// Add up the sums of threads that are `across` apart, into the first of them, half of the rows to the other half.
__device__ __forceinline__ void add_rows(ACC *shared, int count, int across) {
    const int thread = (int)threadIdx.x, threads = (int)blockDim.x, row = thread / across;
    for (int rows = threads / across; rows > 1;) {
        const int half = (rows + 1) / 2;
        __syncthreads();
        if (row + half < rows)
            for (int i = 0; i < count; ++i)
                shared[i * threads + thread] += shared[i * threads + thread + half * across];
        rows = half;
    }
}

extern "C" __global__ void __launch_bounds__(256, RESIDENT_BLOCKS)
    gpuconv_depthwise_weight_grad(const T *__restrict__ dy, const T *__restrict__ x, ACC *__restrict__ partial,
                                  const DepthwiseWeightGrad p) {
    SHARED(ACC, shared);
    const int thread = (int)threadIdx.x, threads = (int)blockDim.x;
    const int row = thread / p.across, rows = threads / p.across;
    const INDEX part = blockIdx.x / p.blocks, block = blockIdx.x % p.blocks;
    const INDEX in = block % IN, channel = (block / IN * p.across + thread % p.across) * LANES;
    const INDEX begin = part * p.length, end = begin + p.length < p.total ? begin + p.length : p.total;
    const bool works = row < rows && channel < p.channels;
    ACC sum[TAPS * LANES];
#pragma unroll
    for (int i = 0; i < TAPS * LANES; ++i) sum[i] = (ACC)0;
    if (works)
        for (INDEX number = begin + row; number < end; number += rows) {
            INDEX image = number;
            const Tile tile = take_tile(image, p.tiles);
            add_tile(x + (image * p.x.image + (channel / OUT * IN + in) * p.x.channel),
                     dy + (image * p.dy.image + channel * p.dy.channel), tile, p, sum);
        }
    for (int from = 0; from < TAPS * LANES; from += TOGETHER) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < TAPS * LANES; ++i)  // all of them, as registers have no index
            if (i >= from && i < from + TOGETHER) shared[(i - from) * threads + thread] = sum[i];
        const int count = from + TOGETHER < TAPS * LANES ? TOGETHER : TAPS * LANES - from;
        add_rows(shared, count, p.across);
        if (works && row == 0)
            for (int i = from; i < from + count; ++i)
                partial[part * p.size + (channel + i % LANES) * p.out + in * p.in + i / LANES * p.tap] =
                    shared[(i - from) * threads + thread];
    }
}
