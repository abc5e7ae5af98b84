// What direct convolutions share: a thread's tile of places, and the rows that it reads into registers.
//
// Fixed when compiled, besides:
//   ROWS, COLUMNS   places of a tile along the last two axes
//   IN, OUT         channels of a group that are read, and that are written
//   LEAD            channels first: places between a vector's begin and a tile's first; one number for all tiles
//   BACKWARD        whether a tile is of dx, collected from dy, and not of y or dy, with x read
//   PHASE1, PHASE2  backward: padding modulo stride along the last two axes, else 0
//   RESIDENT        blocks of 256 threads that are to share the registers of a multiprocessor
//
// Forward, tap j of the tile's place t reads the place t*S + j*D behind the tile's first. Backward, place t of dx
// collects from the output (PHASE + t - j*D) / S, counted likewise, where that is a whole number: tiles begin at
// multiples of the stride, so the taps that do are known when compiling, and none is multiplied by zero.

#define LANES (CHANNELS_LAST ? VECTOR : 1)          // channels of a tile
#define SHARING (LANES < OUT ? LANES : OUT)         // of them so many, a group's, read the same
#define SOURCES (LANES / SHARING)                   // channels that are read at once
#define ONE_TO_ONE (IN * OUT == 1)

#define BACK(K, D, PHASE) ((K - 1) * D > PHASE ? (K - 1) * D - PHASE : 0)
#define READ(PLACES, K, S, D, PHASE)                                                                            \
    (BACKWARD ? BACK(K, D, PHASE) / S + (PHASE + PLACES - 1) / S + 1 : (PLACES - 1) * S + (K - 1) * D + 1)
#define READ_ROWS READ(ROWS, K1, S1, D1, PHASE1)
#define READ_COLUMNS READ(COLUMNS, K2, S2, D2, PHASE2)

// Where a tap of a tile's place reads, counted from the tile's first; -1 where it doesn't.
__device__ __forceinline__ int read_at(int place, int tap, int k, int s, int d, int phase) {
    if (!BACKWARD) return place * s + tap * d;
    const int scaled = BACK(k, d, phase) / s * s + phase + place - tap * d;
    return scaled % s ? -1 : scaled / s;
}

__device__ __forceinline__ int row_at(int place, int tap) { return read_at(place, tap, K1, S1, D1, PHASE1); }
__device__ __forceinline__ int column_at(int place, int tap) { return read_at(place, tap, K2, S2, D2, PHASE2); }

// The slice (along the first of three axes) that tap a of a tile's slice reads; false where there is none.
__device__ __forceinline__ bool slice_at(int slice, int a, const Window &window, int &found) {
    found = 0;
    if (AXES < 3) return true;
    const int scaled = BACKWARD ? slice + window.before[0] - a * D0 : slice * S0 - window.before[0] + a * D0;
    found = BACKWARD ? scaled / S0 : scaled;
    return scaled >= 0 && !(BACKWARD && scaled % S0) && found < window.in[0];
}

// How many tiles there are along each axis; along the first one they are slices.
struct Tiles {
    Divisor slices, rows, columns;
};

struct Tile {
    int slice, row, column;  // its first place
};

// Take a tile off a number. Neighbours lie in a row (channels first), to be read together; or above each other
// (channels last, where a place alone fills what is read together): a block then covers rows that overlap.
__device__ __forceinline__ Tile take_tile(INDEX &number, const Tiles &tiles) {
    Tile tile;
    if (!CHANNELS_LAST) tile.column = (int)take(number, tiles.columns) * COLUMNS;
    tile.row = (int)take(number, tiles.rows) * ROWS;
    if (CHANNELS_LAST) tile.column = (int)take(number, tiles.columns) * COLUMNS;
    tile.slice = AXES > 2 ? (int)take(number, tiles.slices) : 0;
    return tile;
}

// The first row, or column, that a tile reads.
__device__ __forceinline__ int first_at(int place, int axis, const Window &window) {
    return (BACKWARD ? place / stride(axis) : place * stride(axis)) - window.before[axis];
}

// Offsets of places that may lie outside of the array, where nothing is read: they wrap around.
template <typename I>
struct Wrapping {
    typedef unsigned type;
};
template <>
struct Wrapping<long long> {
    typedef unsigned long long type;
};
typedef typename Wrapping<INDEX>::type Wrapped;

__device__ __forceinline__ INDEX step_to(int slice, int row, int column, const Strides &strides) {
    return (INDEX)((Wrapped)slice * (Wrapped)strides.place[0] + (Wrapped)row * (Wrapped)strides.place[1] +
                   (Wrapped)column * (Wrapped)strides.place[2]);
}

// Take an item's tile and its first channel off its number, which leaves the image's; `channels` are counted in
// tiles.
__device__ __forceinline__ Tile take_item(INDEX &number, const Divisor &channels, const Tiles &tiles, INDEX &channel) {
    if (CHANNELS_LAST) channel = take(number, channels) * LANES;
    const Tile tile = take_tile(number, tiles);
    if (!CHANNELS_LAST) channel = take(number, channels);
    return tile;
}

// Call visit(i, t, offset) for each vector of a tile's row q that lies in the result: its first number in the tile, its
// column there, and where it lies in the result.
template <typename F>
__device__ __forceinline__ void for_results(int q, INDEX image, INDEX channel, const Tile &tile,
                                            const Divisor &channels, const int *size, F visit) {
    const INDEX all = channels.value * LANES, places = (INDEX)size[0] * size[1] * size[2];
    const Place first = {{tile.slice, tile.row, tile.column}};
    const INDEX begin = flat<INDEX>(first, size);
    const INDEX corner = CHANNELS_LAST ? (image * places + begin) * all + channel
                                       : (image * all + channel) * places + begin;
#pragma unroll
    for (int t = 0; t < COLUMNS; t += PLACES)
        if (tile.row + q < size[1] && tile.column + t < size[2])
            visit((q * COLUMNS + t) * LANES, t, corner + (q * size[2] + t) * (CHANNELS_LAST ? all : 1));
}

// Write row q of a tile, as far as it lies in the result: value(i) is that of its i-th number.
template <typename F>
__device__ __forceinline__ void write_row(int q, INDEX image, INDEX channel, const Tile &tile, const Divisor &channels,
                                          const int *size, T *result, F value) {
    for_results(q, image, channel, tile, channels, size, [&](int i, int, INDEX offset) {
        Vector<T> values;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) values.lane[v] = (T)value(i + v);
        store(result + offset, values);
    });
}

// What padding counts as: nothing, or (of floats) less than any number.
enum Fill { ZERO, LOWEST };

__device__ __forceinline__ float minus_infinity() {
    const union {
        unsigned bits;
        float value;
    } lowest = {0xff800000u};
    return lowest.value;
}

// A vector, or one of padding, as words: left to the compiler, float16 is merged lane by lane.
template <typename E>
struct Loaded {
    enum { WORDS = (sizeof(Vector<E>) + 3) / 4 };
    unsigned words[WORDS];

    __device__ __forceinline__ Loaded(bool there, const E *from, Fill fill = ZERO) {
        typedef typename Words<alignof(Vector<E>)>::type Word;
        union {
            unsigned words[WORDS];
            Word loaded[sizeof(Vector<E>) / sizeof(Word)];
        } bits = {};
        if (fill == LOWEST)
#pragma unroll
            for (int i = 0; i < WORDS; ++i)
                bits.words[i] = sizeof(E) == 2 ? 0xfc00fc00u : sizeof(E) == 4 ? 0xff800000u : i % 2 * 0xfff00000u;
        if (there)
#pragma unroll
            for (int i = 0; i < (int)(sizeof(Vector<E>) / sizeof(Word)); ++i)
                bits.loaded[i] = reinterpret_cast<const Word *>(from)[i];
#pragma unroll
        for (int i = 0; i < WORDS; ++i) words[i] = bits.words[i];
    }

    __device__ __forceinline__ E operator[](int lane) const {
        union {
            unsigned words[2];
            unsigned short half;
            unsigned char byte;
            E value;
        } bits = {};
        if (sizeof(E) == 1)
            bits.byte = (unsigned char)(words[lane / 4] >> lane % 4 * 8);
        else if (sizeof(E) == 2)
            bits.half = (unsigned short)(words[lane / 2] >> lane % 2 * 16);
        else
#pragma unroll
            for (int i = 0; i < (int)sizeof(E) / 4; ++i) bits.words[i] = words[lane * ((int)sizeof(E) / 4) + i];
        return bits.value;
    }
};

// Read `count` places of a row of `size` places, the first one at `from` and number `first`; padding where there
// are none.
//
// Channels first, `lead` places before the first begins a vector, and each vector lies in the row or beyond its
// end as a whole. Channels last, `sources` channels of each place, side by side or `apart` from each other.
template <typename E, typename R>
__device__ __forceinline__ void read_row(const E *from, bool there, int first, int size, INDEX step, int count,
                                         int lead, int sources, bool together, INDEX apart, R *values,
                                         Fill fill = ZERO) {
#if CHANNELS_LAST
#pragma unroll
    for (int i = 0; i < count; ++i) {
        const bool inside = there && (unsigned)(first + i) < (unsigned)size;
        const E *place = from + (INDEX)((Wrapped)i * (Wrapped)step);
        if (together) {
            const Loaded<E> some(inside, place, fill);
#pragma unroll
            for (int s = 0; s < VECTOR; ++s) values[i * VECTOR + s] = (R)some[s];
        } else {
#pragma unroll
            for (int s = 0; s < sources; ++s)
                values[i * sources + s] = inside ? (R)place[s * apart] : (R)0;
        }
    }
#else
#pragma unroll
    for (int v = -lead; v < count; v += VECTOR) {
        const bool inside = there && (unsigned)(first + v) < (unsigned)size;
        const Loaded<E> some(inside, from + (INDEX)((Wrapped)v * (Wrapped)(VECTOR > 1 ? 1 : step)), fill);
#pragma unroll
        for (int lane = 0; lane < VECTOR; ++lane)
            if (v + lane >= 0 && v + lane < count) values[v + lane] = (R)some[lane];
    }
#endif
}

// Read all that a tile needs of a row, of as many channels as it has.
template <typename E, typename R>
__device__ __forceinline__ void read_row(const E *from, bool there, int column, const Strides &strides,
                                         const Window &window, R *values, Fill fill = ZERO) {
    read_row(from, there, column, window.in[2], strides.place[2], READ_COLUMNS, LEAD, LANES, true, 0, values, fill);
}

// Call visit(a, slice, r, row) for each row that a tile reads: slice of taps and of the source, number of the row
// in the tile, and in the source.
template <typename F>
__device__ __forceinline__ void for_rows(const Tile &tile, const Window &window, F visit) {
    const int row = first_at(tile.row, 1, window);
#pragma unroll
    for (int a = 0; a < K0; ++a) {
        int slice;
        if (!slice_at(tile.slice, a, window, slice)) continue;
#pragma unroll
        for (int r = 0; r < READ_ROWS; ++r) visit(a, slice, r, row + r);
    }
}

// Call visit(i, at, tap) for whatever a tile collects from the r-th row that it reads, with slice a of taps: its i-th
// number, from the row's at-th, with this tap.
template <typename F>
__device__ __forceinline__ void for_collected(int a, int r, F visit) {
#pragma unroll
    for (int q = 0; q < ROWS; ++q)
#pragma unroll
        for (int b = 0; b < K1; ++b) {
            if (row_at(q, b) != r) continue;
#pragma unroll
            for (int i = 0; i < COLUMNS * LANES; ++i)
#pragma unroll
                for (int c = 0; c < K2; ++c) {
                    const int at = column_at(i / LANES, c);
                    if (at >= 0) visit(q * COLUMNS * LANES + i, at * LANES + i % LANES, (a * K1 + b) * K2 + c);
                }
        }
}

// Tell whether all taps count in the divisors of all windows that a tile reads or is read by, the first of which begins
// at `start`.
__device__ __forceinline__ bool counts_all(const Place &start, const Counted &counted) {
    const int last[3] = {(K0 - 1) * D0, (BACKWARD ? (READ_ROWS - 1) * S1 + (K1 - 1) * D1 : READ_ROWS - 1),
                         (BACKWARD ? (READ_COLUMNS - 1) * S2 + (K2 - 1) * D2 : READ_COLUMNS - 1)};
    if (counted.divisor) return true;
    bool all = true;
#pragma unroll
    for (int axis = FIRST_AXIS; axis < 3; ++axis)
        all = all && start.at[axis] >= counted.low[axis] && start.at[axis] + last[axis] < counted.high[axis];
    return all;
}
