// Convolution, and its input gradient, as a matrix product whose columns are never written: implicit GEMM.
//
//   y[n, g, o, p] = b[g, o] + sum over c < C/G and taps j of w[g, o, c, j] * x[n, g, c, p*S - before + j*D]
//   dx[n, g, c, i] = b[g, c] + sum over o < K/G and taps j of w[g, o, c, j] * dy[n, g, o, (i + before - j*D) / S],
//                    where that is a whole number
//
// Below, "source" is what is read (x, or dy) and "result" what is written (y, or dx). S. Chetlur et al., "cuDNN:
// Efficient Primitives for Deep Learning", 2014.
//
// Places of dx fall into phases, by the remainders of i by S: of one phase all read with the same taps, so that nothing
// is multiplied by zero. Forward, and with stride 1, there is one phase.
//
// Who computes what: a block a tile of places (of one phase, of all images, one after another) and of a group's channels.
// In slices of DEPTH terms, (c, j) pairs, it copies weights and places to shared memory, padding as zeros, and multiplies
// them (product.cuh). For 256 terms at a time, what a term adds to an address stands in a table in shared memory, and
// which tap it is; a thread knows where each of its places begins, and which taps read within the source.
//
// Where tiles are too few for a GPU, IN_PARTS, a phase's slices are shared out among as many blocks as there are parts:
// part i writes its sums at [i, ...result], and sum_parts.cu adds them up, with b. No atomics; how many parts there are
// depends on shape and workspace limit alone, so a sum is the same every time.
//
// Bytes: the result once; the source once for each Filters::SIZE channels of the result and K1 * K2 / (S1 * S2) times,
// and the weights once for each Image::SIZE places, both mostly from the L2; the sums of all parts.
//
// Fixed when compiled, besides: BACKWARD; SOURCE_WIDTH and WEIGHTS_WIDTH, elements of a copy of source and weights; and
// what product.cuh and epilogue.cuh name.

#define IMAGE_ALONG_DEPTH CHANNELS_LAST                    // channels lie side by side, or places
#define FILTERS_ALONG_DEPTH !(CHANNELS_LAST && !BACKWARD)  // and of weights terms, or channels
#include "epilogue.cuh"
#include "product.cuh"

#define STEP(axis) (BACKWARD ? stride(axis) : 1)   // from a place of a phase to the next
#define PHASES(axis) (BACKWARD && stride(axis) < p.window.out[axis] ? stride(axis) : BACKWARD ? p.window.out[axis] : 1)

// The taps of a phase along an axis: `count` of them from `first` on, `apart`; tap j reads at the place's number + shift.
struct Along {
    int first, count, apart, shift;
};

// A place of a phase: its image, and its numbers along the axes.
struct Numbered {
    INDEX image;
    int at[3];
};

struct ImplicitGemm {
    Window window;  // from source (in) to result (out)
    Strides source;
    Divisor grid[3];    // places of a phase along each axis; of some phases, the last lies outside of the result
    INDEX places;       // of a phase, of all images
    int read, written;  // channels of a group
    Divisor depth;      // those that are read, to divide by
    int place_tiles, channel_tiles, groups;
    int last_phase_first;  // whether it has more taps: what takes longest should begin first
    INDEX group, in, out, tap;  // strides of w: by group, channel of the source in it, of the result in it, tap
    INDEX size;                 // elements of the result
    int parts;
};

// What a term of the sums adds to the addresses of source and weights, and its tap; none behind the last one.
struct alignas(16) Term {
    INDEX source;
    Taps tap;
    INDEX weights;
};

__device__ __forceinline__ Along taps_along(int axis, int phase, const Window &window) {
    if (!BACKWARD) return {0, kernel(axis), 1, -window.before[axis]};
    int divisor = stride(axis), rest = dilation(axis) % divisor;
    while (rest) {  // the greatest common one of stride and dilation
        const int last = divisor % rest;
        divisor = rest;
        rest = last;
    }
    Along along = {0, 0, stride(axis) / divisor, phase + window.before[axis]};
    const int last = along.apart < kernel(axis) ? along.apart : kernel(axis);  // from where on they come again
    while (along.first < last && (along.shift - along.first * dilation(axis)) % stride(axis)) ++along.first;
    if (along.first < last)
        along.count = (kernel(axis) - 1 - along.first) / along.apart + 1;
    return along;
}

// How far from a place's own number its tap j reads, along an axis.
__device__ __forceinline__ int shifted(int tap, int axis, const Along &along) {
    return BACKWARD ? (along.shift - tap * dilation(axis)) / stride(axis) : along.shift + tap * dilation(axis);
}

// Term k: channels first, the taps of a channel follow each other; channels last, the channels of a tap.
__device__ __forceinline__ Term term_at(INDEX k, const Along (&along)[3], const ImplicitGemm &p) {
    const int count = along[0].count * along[1].count * along[2].count;
    Term term = {};
    if (k >= (INDEX)count * p.read) return term;
    INDEX channel, number;
    if (CHANNELS_LAST) {
        number = k;
        channel = take(number, p.depth);
    } else {
        channel = k / count;
        number = k - channel * count;
    }
    int flat = 0, rest = (int)number, tap[3];
#pragma unroll
    for (int axis = 2; axis >= FIRST_AXIS; --axis) {
        tap[axis] = along[axis].first + rest % along[axis].count * along[axis].apart;
        rest /= along[axis].count;
    }
    term.source = channel * p.source.channel;
#pragma unroll
    for (int axis = FIRST_AXIS; axis < 3; ++axis) {
        flat = flat * kernel(axis) + tap[axis];
        term.source += shifted(tap[axis], axis, along[axis]) * p.source.place[axis];
    }
    term.weights = channel * p.in + flat * p.tap;
    term.tap = (Taps)1 << flat;
    return term;
}

__device__ __forceinline__ Numbered numbered(INDEX flat, const ImplicitGemm &p) {
    Numbered place = {0, {0, 0, 0}};
#pragma unroll
    for (int axis = 2; axis >= FIRST_AXIS; --axis) place.at[axis] = (int)take(flat, p.grid[axis]);
    place.image = flat;
    return place;
}

// Where a place of the phase begins to read, and which of its taps read within the source.
struct Reader {
    const T *source;
    Taps taps;
};

__device__ __forceinline__ Reader reader_at(const T *source, INDEX flat, const Along (&along)[3],
                                            const ImplicitGemm &p) {
    Reader reader = {source, 0};
    if (flat >= p.places) return reader;
    const Numbered place = numbered(flat, p);
    Taps inside[3] = {1, 1, 1};
    INDEX begin = place.image * p.source.image;
#pragma unroll
    for (int axis = FIRST_AXIS; axis < 3; ++axis) {
        const int number = BACKWARD ? place.at[axis] : place.at[axis] * stride(axis);
        begin += number * p.source.place[axis];
        inside[axis] = 0;
#pragma unroll
        for (int tap = 0; tap < kernel(axis); ++tap) {
            const int at = number + shifted(tap, axis, along[axis]);  // of another phase's tap any, as nobody asks
            if ((unsigned)at < (unsigned)p.window.in[axis]) inside[axis] |= (Taps)1 << tap;
        }
    }
    reader.source += begin;
    reader.taps = combined(inside);
    return reader;
}

// Where a place lies in the result, in places from its begin; negative where it lies outside.
__device__ __forceinline__ INDEX written_at(INDEX flat, const int (&phase)[3], const ImplicitGemm &p, INDEX &image) {
    image = 0;
    if (flat >= p.places) return -1;
    const Numbered place = numbered(flat, p);
    INDEX at = 0;
    bool inside = true;
#pragma unroll
    for (int axis = FIRST_AXIS; axis < 3; ++axis) {
        const int i = place.at[axis] * STEP(axis) + phase[axis];
        inside = inside && i < p.window.out[axis];
        at = at * p.window.out[axis] + i;
    }
    image = place.image;
    return inside ? at : -1;
}

// Write a block's sums: VECTOR places (channels first) or channels (channels last) at a time.
__device__ __forceinline__ void write(const Sums &sum, const T *b, Written *result, INDEX first_place, int first_channel,
                                      int group, const int (&phase)[3], const ImplicitGemm &p) {
    const INDEX plane = (INDEX)p.window.out[0] * p.window.out[1] * p.window.out[2];
    const INDEX channels = (INDEX)p.groups * p.written;
#if CHANNELS_LAST
#pragma unroll
    for (int i = 0; i < MY_ROWS; ++i) {
        INDEX image;
        const INDEX at = written_at(first_place + row_of(i), phase, p, image);
        if (at < 0) continue;
        Written *const place = result + ((image * plane + at) * channels + group * p.written);
#pragma unroll
        for (int j = 0; j < MY_COLUMNS; j += VECTOR) {
            const int channel = first_channel + column_of(j);
            if (channel >= p.written) continue;
            ACC values[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v)
                values[v] = finished(sum[i][j + v], b + group * p.written, channel + v);
            store(place + channel, values);
        }
    }
#else
#pragma unroll
    for (int j = 0; j < MY_COLUMNS; j += VECTOR) {
        INDEX image;
        const INDEX at = written_at(first_place + column_of(j), phase, p, image);
        if (at < 0) continue;
        Written *const place = result + ((image * channels + group * p.written) * plane + at);
#pragma unroll
        for (int i = 0; i < MY_ROWS; ++i) {
            const int channel = first_channel + row_of(i);
            if (channel >= p.written) continue;
            ACC values[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v)
                values[v] = finished(sum[i][j + v], b + group * p.written, channel);
            store(place + channel * plane, values);
        }
    }
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_HERE)
    gpuconv_implicit_gemm(const T *__restrict__ source, const T *__restrict__ w, const T *__restrict__ b,
                          Written *__restrict__ result, const ImplicitGemm p) {
    typedef Share<Image, SOURCE_WIDTH> Gather;
    typedef Share<Filters, WEIGHTS_WIDTH> Filter;
    SHARED(T, shared);
    Term *const terms = reinterpret_cast<Term *>(shared + STAGES * STAGE);

    int rest = (int)blockIdx.x, phase[3] = {0, 0, 0};
    const int first_channel = rest % p.channel_tiles * Filters::SIZE;
    rest /= p.channel_tiles;
    const INDEX first_place = (INDEX)(rest % p.place_tiles) * Image::SIZE;
    rest /= p.place_tiles;
    const int group = rest % p.groups;
    rest /= p.groups;
    int part = 0;
    if (IN_PARTS) {
        part = rest % p.parts;
        rest /= p.parts;
    }
    if (p.last_phase_first) rest = PHASES(0) * PHASES(1) * PHASES(2) - 1 - rest;
    Along along[3] = {{0, 1, 1, 0}, {0, 1, 1, 0}, {0, 1, 1, 0}};
#pragma unroll
    for (int axis = 2; axis >= FIRST_AXIS; --axis) {
        phase[axis] = rest % PHASES(axis);
        rest /= PHASES(axis);
        along[axis] = taps_along(axis, phase[axis], p.window);
    }

    source += group * p.read * p.source.channel;
    w += group * p.group;
    Reader readers[Gather::SEEN];
#pragma unroll
    for (int i = 0; i < Gather::SEEN; ++i) readers[i] = reader_at(source, first_place + Gather::place(i), along, p);
    INDEX filters[Filter::SEEN];
#pragma unroll
    for (int i = 0; i < Filter::SEEN; ++i) {  // beyond the last channel the last again, for sums that nobody writes
        const int channel = first_channel + Filter::place(i);
        const int last = p.written - (FILTERS_ALONG_DEPTH ? 1 : WEIGHTS_WIDTH);
        filters[i] = (channel < last ? channel : last) * p.out;
    }

    const INDEX depth = (INDEX)along[0].count * along[1].count * along[2].count * p.read;
    int slices = (int)((depth + DEPTH - 1) / DEPTH), first_slice = 0;
    if (IN_PARTS) {  // the first parts have one more, if they can't all have as many
        const int each = slices / p.parts, more = slices % p.parts;
        first_slice = part * each + (part < more ? part : more);
        slices = each + (part < more);
        result += part * p.size;
    }

    Gather gather;
    Filter filter;
    const auto list = [&](int slice) {
        terms[threadIdx.x] = term_at((INDEX)(first_slice + slice) * DEPTH + (INDEX)threadIdx.x, along, p);
    };
    const auto ask = [&](int slice, T *to) {
        const Term *listed = terms + slice * DEPTH % THREADS;
        gather.ask(listed, to + IMAGE_AT, [&](int i, const Term &term) -> Found {
            return {readers[i].source + term.source, (readers[i].taps & term.tap) != 0};
        });
        filter.ask(listed, to + FILTERS_AT, [&](int i, const Term &term) -> Found {
            return {(w + term.weights) + filters[i], term.tap != 0};
        });
    };
    const auto settle = [&](T *to) {
        gather.settle(to + IMAGE_AT);
        filter.settle(to + FILTERS_AT);
    };
    Sums sum;
    add_slices<THREADS / DEPTH>(slices, shared, sum, list, ask, settle);
    write(sum, b, result, first_place, first_channel, group, phase, p);
}
