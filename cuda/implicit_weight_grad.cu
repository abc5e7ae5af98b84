// Weight gradient of a convolution as a matrix product whose columns are never written, first of two stages: sums over
// parts of the batch.
//
//   partial[part, g, o, c, j] = sum over the images and places (n, p) of this part of
//                               dy[n, g, o, p] * x[n, g, c, p*S - before + j*D]
//
// The second stage, sum_parts.cu, adds the parts; with one part there is none. Neither has atomics; the cuts depend on
// shape and workspace limit alone, so a sum is the same every time.
//
// Who computes what: a block a tile of a group's dw, of a part: output channels by (c, j) pairs. In slices of DEPTH
// places it copies dy and x to shared memory, padding as zeros, and multiplies them (product.cuh). For 256 places at a
// time a table in shared memory has where they begin in x and dy, and which taps read within x; a thread knows what each
// of its pairs adds to that.
//
// Bytes: dy once for each Image::SIZE pairs, x once for each Filters::SIZE channels and K1 * K2 / (S1 * S2) times,
// mostly from the L2; the sums of all parts.
//
// Fixed when compiled, besides: X_WIDTH and DY_WIDTH, elements of a copy of x and dy; and what product.cuh names.

#define IMAGE_ALONG_DEPTH !CHANNELS_LAST  // places lie side by side, or channels
#define FILTERS_ALONG_DEPTH !CHANNELS_LAST
#include "product.cuh"

struct ImplicitWeightGrad {
    Window window;
    Strides x, dy;
    Divisor inner[2];      // the last two sizes of a plane of dy
    Divisor plane;         // its places
    INDEX total, length;   // places of the batch, and of a part: a multiple of DEPTH
    int read, written;     // channels of a group: of x, of dy
    int pair_tiles, filter_tiles, groups;
    INDEX size;            // elements of dw
};

// Where a place begins in x and dy, and which taps read within x; behind the last one there is none.
struct alignas(16) Term {
    INDEX x, dy;
    Taps taps;
    bool there;
};

__device__ __forceinline__ Term term_at(INDEX flat, INDEX end, const ImplicitWeightGrad &p) {
    Term term = {};
    if (flat >= end) return term;
    const INDEX place = take(flat, p.plane);
    const Place out = unravel(place, p.inner), start = first_read(out, p.window);
    Taps inside[3] = {1, 1, 1};
#pragma unroll
    for (int axis = FIRST_AXIS; axis < 3; ++axis) {
        inside[axis] = 0;
#pragma unroll
        for (int tap = 0; tap < kernel(axis); ++tap)
            if ((unsigned)(start.at[axis] + tap * dilation(axis)) < (unsigned)p.window.in[axis])
                inside[axis] |= (Taps)1 << tap;
    }
    term.x = flat * p.x.image + offset(start, p.x);
    term.dy = flat * p.dy.image + offset(out, p.dy);
    term.taps = combined(inside);
    term.there = true;  // without taps, too: a NaN in dy is not lost
    return term;
}

// What a pair of a channel and a tap adds to where a place begins in x, and its tap; none beyond the last pair.
struct Pair {
    INDEX x;
    Taps tap;
};

__device__ __forceinline__ Pair pair_at(int number, const ImplicitWeightGrad &p) {
    Pair pair = {0, 0};
    if (number >= p.read * TAPS) return pair;
    const int channel = CHANNELS_LAST ? number % p.read : number / TAPS;
    const int flat = CHANNELS_LAST ? number / p.read : number % TAPS;
    const Place tap = {{flat / (K1 * K2) * D0, flat / K2 % K1 * D1, flat % K2 * D2}};
    pair.x = channel * p.x.channel + offset(tap, p.x);
    pair.tap = (Taps)1 << flat;
    return pair;
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_HERE)
    gpuconv_implicit_weight_grad(const T *__restrict__ dy, const T *__restrict__ x, Written *__restrict__ partial,
                                 const ImplicitWeightGrad p) {
    typedef Share<Image, X_WIDTH> Gather;
    typedef Share<Filters, DY_WIDTH> Filter;
    SHARED(T, shared);
    Term *const terms = reinterpret_cast<Term *>(shared + STAGES * STAGE);

    int rest = (int)blockIdx.x;
    const int first_filter = rest % p.filter_tiles * Filters::SIZE;
    rest /= p.filter_tiles;
    const int first_pair = rest % p.pair_tiles * Image::SIZE;
    rest /= p.pair_tiles;
    const int group = rest % p.groups;
    const INDEX part = rest / p.groups, begin = part * p.length;
    const INDEX end = begin + p.length < p.total ? begin + p.length : p.total;

    x += group * p.read * p.x.channel;
    dy += group * p.written * p.dy.channel;
    Pair pairs[Gather::SEEN];
#pragma unroll
    for (int i = 0; i < Gather::SEEN; ++i) pairs[i] = pair_at(first_pair + Gather::place(i), p);
    INDEX filters[Filter::SEEN];
#pragma unroll
    for (int i = 0; i < Filter::SEEN; ++i) {  // beyond the last channel the last again, for sums that nobody writes
        const int channel = first_filter + Filter::place(i), last = p.written - (CHANNELS_LAST ? DY_WIDTH : 1);
        filters[i] = (channel < last ? channel : last) * p.dy.channel;
    }

    Gather gather;
    Filter filter;
    const auto list = [&](int slice) {
        terms[threadIdx.x] = term_at(begin + (INDEX)slice * DEPTH + (INDEX)threadIdx.x, end, p);
    };
    const auto ask = [&](int slice, T *to) {
        const Term *listed = terms + slice * DEPTH % THREADS;
        gather.ask(listed, to + IMAGE_AT, [&](int i, const Term &term) -> Found {
            return {x + (term.x + pairs[i].x), (term.taps & pairs[i].tap) != 0};
        });
        filter.ask(listed, to + FILTERS_AT, [&](int i, const Term &term) -> Found {
            return {(dy + term.dy) + filters[i], term.there};
        });
    };
    const auto settle = [&](T *to) {
        gather.settle(to + IMAGE_AT);
        filter.settle(to + FILTERS_AT);
    };
    Sums sum;
    add_slices<THREADS / DEPTH>((int)((end - begin + DEPTH - 1) / DEPTH), shared, sum, list, ask, settle);

    // dw as it lies in memory: rows of o with (c, j) pairs, or of (j, c) pairs with all o of all groups.
    const int rows = CHANNELS_LAST ? p.read * TAPS : p.written, columns = CHANNELS_LAST ? p.written : p.read * TAPS;
    const INDEX pitch = CHANNELS_LAST ? (INDEX)p.groups * p.written : columns;
    partial += part * p.size + (CHANNELS_LAST ? group * p.written : (INDEX)group * p.written * pitch);
#pragma unroll
    for (int i = 0; i < MY_ROWS; ++i)
#pragma unroll
        for (int j = 0; j < MY_COLUMNS; j += VECTOR) {
            const int row = (CHANNELS_LAST ? first_pair : first_filter) + row_of(i);
            const int column = (CHANNELS_LAST ? first_filter : first_pair) + column_of(j);
            if (row >= rows || column >= columns) continue;
            ACC values[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) values[v] = sum[i][j + v];
            store(partial + (row * pitch + column), values);
        }
}
