// Convolution with 3x3 kernels, stride 1, by Winograd's F(2x2, 3x3), second of two launches; and its input gradient,
// which is one of dy with the turned weights. A tile of 2x2 results reads 4x4 places d of the source:
//
//   V = B^T d B,   M[i] = sum over c of U[i, k, c] V[i, c]  (i of 16),   result = A^T M A + b
//   B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1],   A^T = [1 1 1 0; 0 1 -1 -1],   U from winograd_weights.cu
//
// 16 multiplications in place of 36. A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015. All
// in one kernel, V and M staying in the multiprocessor: D. Yan, W. Wang, X. Chu, "Optimizing Batched Winograd
// Convolution on GPUs", 2020.
//
// Who computes what: a block of 256 threads TILES = 32 tiles, counted over all images, of KERNELS = 64 channels of a
// group. It goes through the channels that are read in slices of SLICE = 4, two of which lie in shared memory: while one
// is multiplied, the next comes from memory, 128 threads with a 4x4 tile each, which they transform, the others with
// 32 numbers of U. A warp multiplies two of the 16 matrices, [64, 4] by [4, 32], and a thread in each of them 8
// channels by 8 tiles: 128 sums in registers. At the end M goes through shared memory, a quarter at a time, to threads
// that have two channels of a tile each. What isn't finite there is computed again, from its definition (below).
//
// Shared memory without bank conflicts: of accesses of 16 bytes, it takes those of 8 threads side by side at once. They
// read 16 channels of U in a row and 8 tiles of V. V lies as a warp writes it: by tiles (channels first), where its
// threads have the tiles of one channel; by 4 channels of 8 tiles (channels last), where they have those. M is written
// by 8 threads that would meet in the banks, as they differ in tile and channel by powers of two: so every other group
// of 4 tiles, or channels, changes places with its neighbour.
//
// Bytes: the source 4 times from the cache, and from memory once for every 64 channels at most; U once for every 32
// tiles, from the L2; the result once.
//
// Fixed when compiled, besides: what epilogue.cuh names. VECTOR numbers of the result are written at a time, 1 or 2:
// places of a row (channels first), or channels.

#include "epilogue.cuh"

#define HALF (KERNELS / 2)               // what a thread has is in two halves, 4 numbers each
#define SLICE_OF_V (16 * SLICE * TILES)  // numbers
#define SLICE_OF_U (16 * SLICE * KERNELS)
#define SLICE_OF_BOTH (SLICE_OF_U + SLICE_OF_V)
#define READERS 128  // threads that read the source; the others read U

struct TileAt {
    INDEX image;
    int row, column;  // of its first result
};

// What a thread finishes in a round, of four: the results of one tile and two channels, counted in the block.
struct Finishes {
    int tile, channel;
};

struct Winograd {
    Window window;              // from the source to the result
    Strides source;
    INDEX tiles;                // of all images
    Divisor rows, columns;      // tiles of an image, along its axes
    INDEX first;                // the first block of channels, counted over all groups
    Divisor together, blocks;   // blocks of channels in this launch, in a group
    int channels, kernels;      // of a group: those that are read, and written
    int slices;                 // of those that are read
    INDEX all;                  // channels of the result
    INDEX group, in, out, tap;  // strides of w, as in winograd_weights.cu
    INDEX corner;
};

__device__ __forceinline__ TileAt tile_at(INDEX number, const Winograd &p) {
    TileAt tile;
    tile.column = 2 * (int)take(number, p.columns);
    tile.row = 2 * (int)take(number, p.rows);
    tile.image = number;
    return tile;
}

// Which of the 16 places that a tile reads there are, a bit each.
__device__ __forceinline__ unsigned places_of(int row, int column, const Window &window) {
    unsigned there = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i)
        if ((unsigned)(row + i / 4) < (unsigned)window.in[1] && (unsigned)(column + i % 4) < (unsigned)window.in[2])
            there |= 1u << i;
    return there;
}

// Read those, zeros in place of the others.
__device__ __forceinline__ void read_tile(const T *from, unsigned there, const Strides &source, T *staged) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) staged[4 * i + j] = there >> (4 * i + j) & 1 ? from[j * source.place[2]] : (T)0;
        from += source.place[1];
    }
}

// The rows of B^T: what 4 numbers, `step` apart, become.
__device__ __forceinline__ void transform(T *values, int step) {
    const T second = values[step], third = values[2 * step];
    values[0] -= third;
    values[step] = second + third;
    values[2 * step] = third - second;
    values[3 * step] = second - values[3 * step];
}

// Transform a tile, and write V where the thread's channel and tile lie in shared memory.
__device__ __forceinline__ void write_tile(T *staged, T *v) {
#pragma unroll
    for (int i = 0; i < 4; ++i) transform(staged + i, 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) transform(staged + 4 * i, 1);
#pragma unroll
    for (int i = 0; i < 16; ++i) v[i * (SLICE * TILES)] = staged[i];
}

typedef Vector<T, 4> Four;

// Which 4 channels of each half of U, and which 4 tiles of each half of V, a thread multiplies. Threads that differ in
// the lowest bit read the same of U, and those that differ in the next the same of V: so two groups of 8 threads are
// served at once (known of the SGEMM in S. Gray's maxas).
__device__ __forceinline__ int fragment_of_u() { return (int)threadIdx.x / 2 % 8; }
__device__ __forceinline__ int fragment_of_v() { return (int)threadIdx.x % 2 + (int)threadIdx.x / 16 % 2 * 2; }

// Add the products of a slice to a thread's sums, whose first channels and tiles lie at u and v.
__device__ __forceinline__ void multiply(const T *u, const T *v, ACC (&sum)[2][8][8]) {
#pragma unroll
    for (int c = 0; c < SLICE; ++c)
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            const T *us = u + (m * SLICE + c) * KERNELS;
            const T *vs = v + m * (SLICE * TILES) + c * (CHANNELS_LAST ? 8 : TILES);
            const Four a[2] = {load<4>(us), load<4>(us + HALF)};
            const Four b[2] = {load<4>(vs), load<4>(vs + (CHANNELS_LAST ? 16 * SLICE : 16))};
#pragma unroll
            for (int k = 0; k < 8; ++k)
#pragma unroll
                for (int t = 0; t < 8; ++t) sum[m][k][t] += a[k / 4].lane[k % 4] * b[t / 4].lane[t % 4];
        }
}

// The rows of A^T.
template <typename R>
__device__ __forceinline__ void results_of(const R *m, int step, R &first, R &second) {
    first = m[0] + m[step] + m[2 * step];
    second = m[step] - m[2 * step] - m[3 * step];
}

__device__ __forceinline__ void results_of(const ACC (&m)[16], ACC (&result)[4]) {
    ACC half[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) results_of(m + i, 4, half[i], half[4 + i]);
    results_of(half, 1, result[0], result[1]);
    results_of(half + 4, 1, result[2], result[3]);
}

__device__ __forceinline__ bool finite(const ACC (&values)[4]) {
    return values[0] * 0 + values[1] * 0 + values[2] * 0 + values[3] * 0 == 0;
}

// Where a result lies.
__device__ __forceinline__ INDEX offset_of(const TileAt &tile, int row, int column, INDEX channel, const Winograd &p) {
    const INDEX height = p.window.out[1], width = p.window.out[2];
    return CHANNELS_LAST ? ((tile.image * height + tile.row + row) * width + tile.column + column) * p.all + channel
                         : ((tile.image * p.all + channel) * height + tile.row + row) * width + tile.column + column;
}

// A result from its definition; k counts the channels of the group.
__device__ __forceinline__ ACC defined(const T *source, const T *w, const TileAt &tile, int row, int column,
                                       INDEX group, int k, const Winograd &p) {
    const int top = tile.row + row - p.window.before[1], left = tile.column + column - p.window.before[2];
    source += tile.image * p.source.image + group * p.channels * p.source.channel;
    w += group * p.group + k * p.out + p.corner;
    ACC sum = (ACC)0;
#pragma unroll 1
    for (int c = 0; c < p.channels; ++c)
#pragma unroll 1
        for (int i = 0; i < 9; ++i) {
            const int y = top + i / 3, x = left + i % 3;
            const bool inside = (unsigned)y < (unsigned)p.window.in[1] && (unsigned)x < (unsigned)p.window.in[2];
            const INDEX place = c * p.source.channel + y * p.source.place[1] + x * p.source.place[2];
            sum += (inside ? (ACC)source[place] : (ACC)0) * (ACC)w[c * p.in + i * p.tap];
        }
    return sum;
}

__device__ __forceinline__ Finishes finishes(int round) {
    const int thread = (int)threadIdx.x, tile = round / 2 * 16, channel = round % 2 * HALF;
    if (CHANNELS_LAST) return {tile + thread / 16, channel + thread % 16 * 2};
    return {tile + thread % 16, channel + thread / 16 % 8 * 4 + thread / READERS};
}

#define NEXT_CHANNEL (CHANNELS_LAST ? 1 : 2)  // from the first of these channels to the second

// Write what a thread has of M for a round's 16 tiles and 32 channels.
__device__ __forceinline__ void write_products(const ACC (&sum)[2][8][8], int round, T *shared) {
    const int i = fragment_of_u(), j = fragment_of_v(), matrix = (int)threadIdx.x / 32 * 2;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            T *to = shared + (matrix + m) * (HALF * 16) +
                    (CHANNELS_LAST ? (j * 4 + r) * HALF + (i ^ j % 2 * 4) * 4 : (r * 8 + i) * 16 + (j ^ (i & 2)) * 4);
            Four four;
#pragma unroll
            for (int q = 0; q < 4; ++q)
                four.lane[q] = CHANNELS_LAST ? sum[m][round % 2 * 4 + q][round / 2 * 4 + r]
                                             : sum[m][round % 2 * 4 + r][round / 2 * 4 + q];
            *reinterpret_cast<Four *>(to) = four;
        }
}

// Read all 16 products of the thread's tile and two channels.
__device__ __forceinline__ void read_products(const T *shared, ACC (&m)[2][16]) {
    const int thread = (int)threadIdx.x, t = thread % 16, i = thread / 16 % 8;
    const T *from = shared + (CHANNELS_LAST ? (thread * 2 ^ thread / 64 % 2 * 16)
                                            : (thread / READERS * 8 + i) * 16 + (t ^ (i & 2) * 4));
#pragma unroll
    for (int matrix = 0; matrix < 16; ++matrix) {
        const T *two = from + matrix * (HALF * 16);
        if (CHANNELS_LAST) {
            const Vector<T, 2> both = load<2>(two);
            m[0][matrix] = both.lane[0];
            m[1][matrix] = both.lane[1];
        } else {
            m[0][matrix] = two[0];
            m[1][matrix] = two[2 * 8 * 16];
        }
    }
}

// Write the results of a tile and the thread's two channels, the first of which is k of the group and `at` of all.
__device__ __forceinline__ void write_results(const ACC (&values)[2][4], const T *b, const TileAt &tile, int k,
                                              INDEX at, T *result, const Winograd &p) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // of two channels, or of two places of a row
        const int row = i % 2, column = CHANNELS_LAST ? i / 2 : 0, e = CHANNELS_LAST ? 0 : i / 2;
        const int next = e * NEXT_CHANNEL;
        if (k + next >= p.kernels || tile.row + row >= p.window.out[1] || tile.column + column >= p.window.out[2])
            continue;
        const bool both = CHANNELS_LAST ? k + 1 < p.kernels : tile.column + 1 < p.window.out[2];
        const T first = (T)finished(values[e][row * 2 + column], b, at + next);
        const T second = (T)(CHANNELS_LAST ? finished(values[1][row * 2 + column], b, both ? at + 1 : at)
                                           : finished(values[e][row * 2 + 1], b, at + next));
        T *to = result + offset_of(tile, row, column, at + next, p);
#if VECTOR == 2
        store<T>(to, Vector<T>{{first, second}});
#else
        to[0] = first;
        if (both) to[1] = second;
#endif
    }
}

extern "C" __global__ void __launch_bounds__(256, 1)
    gpuconv_winograd(const T *__restrict__ source, const T *__restrict__ w, const T *__restrict__ b,
                     const T *__restrict__ u, T *__restrict__ result, const Winograd p) {
    SHARED(T, shared);
    const int thread = (int)threadIdx.x;
    INDEX first = blockIdx.x;
    const INDEX block = take(first, p.together);
    first *= TILES;
    INDEX group = block + p.first;
    const int first_kernel = (int)take(group, p.blocks) * KERNELS;

    // What a thread brings from memory.
    const bool reads_tile = thread < READERS;
    const int part = thread % READERS;
    int channel = CHANNELS_LAST ? part % SLICE : part / TILES;
    const T *from = u + (block * p.slices * SLICE_OF_U + part * 4);
    INDEX step = SLICE_OF_U;
    int to = part * 4;
    unsigned there = 0;
    if (reads_tile) {
        const int t = CHANNELS_LAST ? part / SLICE : part % TILES;
        const bool is_one = first + t < p.tiles;
        const TileAt tile = tile_at(is_one ? first + t : 0, p);
        const int row = tile.row - p.window.before[1], column = tile.column - p.window.before[2];
        if (is_one) there = places_of(row, column, p.window);
        from = source + (tile.image * p.source.image + (group * p.channels + channel) * p.source.channel +
                         row * p.source.place[1] + column * p.source.place[2]);
        step = SLICE * p.source.channel;
        to = SLICE_OF_U + (CHANNELS_LAST ? t / 8 * 32 + channel * 8 + t % 8 : part);
    }
    T staged[32];
    const auto fetch = [&] {
        if (reads_tile) {
            read_tile(from, channel < p.channels ? there : 0, p.source, staged);
        } else {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const Four four = load<4>(from + i * (READERS * 4));
#pragma unroll
                for (int q = 0; q < 4; ++q) staged[4 * i + q] = four.lane[q];
            }
        }
        from += step;
        channel += SLICE;
    };
    const auto put = [&](T *slice) {
        if (reads_tile) {
            write_tile(staged, slice + to);
        } else {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                Four four;
#pragma unroll
                for (int q = 0; q < 4; ++q) four.lane[q] = staged[4 * i + q];
                *reinterpret_cast<Four *>(slice + to + i * (READERS * 4)) = four;
            }
        }
    };

    ACC sum[2][8][8];
#pragma unroll
    for (int i = 0; i < 128; ++i) sum[i / 64][i / 8 % 8][i % 8] = (ACC)0;
    const int j = fragment_of_v(), matrix = thread / 32 * 2;
    const int at_u = matrix * (SLICE * KERNELS) + fragment_of_u() * 4;
    const int at_v = SLICE_OF_U + matrix * (SLICE * TILES) + (CHANNELS_LAST ? j / 2 * (8 * SLICE) + j % 2 * 4 : j * 4);
    fetch();
    put(shared);
    __syncthreads();
    for (int slice = 0; slice < p.slices; ++slice) {
        const T *here = shared + slice % 2 * SLICE_OF_BOTH;
        const bool more = slice + 1 < p.slices;
        if (more) fetch();
        multiply(here + at_u, here + at_v, sum);
        if (more) put(shared + (slice + 1) % 2 * SLICE_OF_BOTH);
        __syncthreads();
    }

    unsigned spoiled = 0;  // results that aren't finite, a bit for each round and channel
#pragma unroll
    for (int round = 0; round < 4; ++round) {
        ACC m[2][16], values[2][4];
        write_products(sum, round, shared);
        __syncthreads();
        read_products(shared, m);
        __syncthreads();
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            results_of(m[e], values[e]);
            if (!finite(values[e])) spoiled |= 1u << (round * 2 + e);
        }
        const Finishes mine = finishes(round);
        const int k = first_kernel + mine.channel;
        if (first + mine.tile < p.tiles)
            write_results(values, b, tile_at(first + mine.tile, p), k, group * p.kernels + k, result, p);
    }

    // An infinity makes NaN of results of its tile that don't read it or are infinite, and so does a sum in between
    // that overflows. This is rare, so the thread that wrote them computes them again. (A result that reads what isn't
    // finite never comes out finite: nothing that it reads is left out of its sums, and an infinity times 0 is NaN.)
    if (!spoiled) return;
#pragma unroll 1
    for (int i = 0; i < 32; ++i) {
        if (!(spoiled >> i / 4 & 1)) continue;
        const int row = i / 2 % 2, column = i % 2;
        const Finishes mine = finishes(i / 8);
        const int k = first_kernel + mine.channel + i / 4 % 2 * NEXT_CHANNEL;
        const INDEX at = group * p.kernels + k;
        const TileAt tile = tile_at(first + mine.tile, p);
        if (first + mine.tile < p.tiles && k < p.kernels && tile.row + row < p.window.out[1] &&
            tile.column + column < p.window.out[2])
            result[offset_of(tile, row, column, at, p)] =
                (T)finished(defined(source, w, tile, row, column, group, k, p), b, at);
    }
}
