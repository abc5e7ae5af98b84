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

// Addresses of 64 bits take more registers, and so do the instructions of sm_100 and later.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define FEWER 1
#else
#define FEWER (sizeof(INDEX) > 4)
#endif
#define RESIDENT_BLOCKS (RESIDENT > 1 ? RESIDENT - FEWER : 1)

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

// A vector, or zeros, as words: left to the compiler, float16 is merged with the zeros lane by lane.
struct Loaded {
    unsigned words[(sizeof(Vector<T>) + 3) / 4];

    __device__ __forceinline__ Loaded(bool there, const T *from) {
        typedef typename Words<alignof(Vector<T>)>::type Word;
        union {
            unsigned words[(sizeof(Vector<T>) + 3) / 4];
            Word loaded[sizeof(Vector<T>) / sizeof(Word)];
        } bits = {};
        if (there)
#pragma unroll
            for (int i = 0; i < (int)(sizeof(Vector<T>) / sizeof(Word)); ++i)
                bits.loaded[i] = reinterpret_cast<const Word *>(from)[i];
#pragma unroll
        for (int i = 0; i < (int)(sizeof(Vector<T>) + 3) / 4; ++i) words[i] = bits.words[i];
    }

    __device__ __forceinline__ ACC operator[](int lane) const {
        union {
            unsigned words[2];
            unsigned short half;
            T value;
        } bits = {};
        if (sizeof(T) == 2)
            bits.half = (unsigned short)(words[lane / 2] >> lane % 2 * 16);
        else
#pragma unroll
            for (int i = 0; i < (int)sizeof(T) / 4; ++i) bits.words[i] = words[lane * ((int)sizeof(T) / 4) + i];
        return (ACC)bits.value;
    }
};

// Read `count` places of a row of `size` places, the first one at `from` and number `first`; zeros where there
// are none.
//
// Channels first, `lead` places before the first begins a vector, and each vector lies in the row or beyond its
// end as a whole. Channels last, `sources` channels of each place, side by side or `apart` from each other.
__device__ __forceinline__ void read_row(const T *from, bool there, int first, int size, INDEX step, int count,
                                         int lead, int sources, bool together, INDEX apart, ACC *values) {
#if CHANNELS_LAST
#pragma unroll
    for (int i = 0; i < count; ++i) {
        const bool inside = there && (unsigned)(first + i) < (unsigned)size;
        const T *place = from + i * step;
        if (together) {
            const Loaded some(inside, place);
#pragma unroll
            for (int s = 0; s < VECTOR; ++s) values[i * VECTOR + s] = some[s];
        } else {
#pragma unroll
            for (int s = 0; s < sources; ++s) values[i * sources + s] = inside ? (ACC)place[s * apart] : (ACC)0;
        }
    }
#else
#pragma unroll
    for (int v = -lead; v < count; v += VECTOR) {
        const bool inside = there && (unsigned)(first + v) < (unsigned)size;
        const Loaded some(inside, from + v * (VECTOR > 1 ? 1 : step));
#pragma unroll
        for (int lane = 0; lane < VECTOR; ++lane)
            if (v + lane >= 0 && v + lane < count) values[v + lane] = some[lane];
    }
#endif
}
