// What implicit matrix products share: a block's tile of the result, the slices of both factors in shared memory, and
// the sums that its threads keep.
//
//   sum[i][j] = sum over k of left[k][row_of(i)] * right[k][column_of(j)]
//
// Fixed when compiled, besides:
//   ROWS, COLUMNS         of a block's tile, which 256 threads share
//   MY_ROWS, MY_COLUMNS   of a thread: multiples of 4
//   DEPTH                 terms of the sums that are in shared memory as one slice
//   STAGES                slices that are there at once: one is multiplied while the others arrive
//   RESIDENT              blocks that are to share the registers of a multiprocessor
//   MASK                  an unsigned type with a bit for each tap
//   TENSOR                0: multiplied one by one; else by tensor cores, from sm_80 on: 1, or 3 for the three products
//                         of what TF32 holds of a float and what is left of it
//   IN_PARTS              1: a block has a part of its sums' terms, and what it writes sum_parts.cu adds up
// And by the kernel that includes this:
//   IMAGE_ALONG_DEPTH     whether terms lie side by side in memory, or rows (columns), of what is gathered from an image
//   FILTERS_ALONG_DEPTH   the same of the other factor, whose rows (columns) are channels

#include "async.cuh"
#if TENSOR && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800)
#define BY_TENSOR_CORES 1
#include "tensor.cuh"
#else
#define BY_TENSOR_CORES 0
#endif

#define THREADS 256
// One by one, factors of float16 take registers as floats, besides.
#define RESIDENT_HERE (TENSOR && !BY_TENSOR_CORES ? 1 : RESIDENT_BLOCKS)
#define LANES 4  // rows, and columns, of a thread that lie side by side: one access

// How a slice of a factor lies in shared memory: one term's rows (or columns) side by side, as they are multiplied one by
// one; for tensor cores a row's terms, where memory has them so.
//
// What lies side by side ends in a gap. Multiplied one by one: eight threads that write one column of a slice write to
// eight banks, four apart, and the four of a warp that lie behind each other fill the gaps. For tensor cores: eight rows
// of 16 bytes, or of four terms eight rows, are read at once.
template <int ROWS_OR_COLUMNS, bool ALONG>
struct Factor {
    enum {
        SIZE = ROWS_OR_COLUMNS,
        ALONG_DEPTH = ALONG,
        BY_DEPTH = TENSOR && ALONG,
        PITCH = BY_DEPTH ? DEPTH + 16 / (int)sizeof(T) : SIZE + (TENSOR ? 8 : 4),
        ELEMENTS = (BY_DEPTH ? SIZE : DEPTH) * PITCH,
    };

    static __device__ __forceinline__ int at(int row, int k) { return BY_DEPTH ? row * PITCH + k : k * PITCH + row; }
};

#if CHANNELS_LAST  // the image's are rows; and where the slices lie in a stage
typedef Factor<ROWS, IMAGE_ALONG_DEPTH> Image, Left;
typedef Factor<COLUMNS, FILTERS_ALONG_DEPTH> Filters, Right;
#define IMAGE_AT 0
#define FILTERS_AT Left::ELEMENTS
#else
typedef Factor<ROWS, FILTERS_ALONG_DEPTH> Filters, Left;
typedef Factor<COLUMNS, IMAGE_ALONG_DEPTH> Image, Right;
#define IMAGE_AT Left::ELEMENTS
#define FILTERS_AT 0
#endif
#define STAGE (Left::ELEMENTS + Right::ELEMENTS)
// Threads along the rows and columns of the tile; a warp takes a patch that is as square as accesses allow.
#if ROWS % MY_ROWS || COLUMNS % MY_COLUMNS || ROWS / MY_ROWS * (COLUMNS / MY_COLUMNS) != THREADS
#error "256 threads must share a tile evenly"
#elif STAGES < 2
#error "one slice is multiplied while another arrives"
#endif
#if BY_TENSOR_CORES
#define WARP_ROWS (MY_ROWS * 8)
#define WARP_COLUMNS (MY_COLUMNS * 4)

__device__ __forceinline__ int warp_row() { return (int)threadIdx.x / 32 / (COLUMNS / WARP_COLUMNS) * WARP_ROWS; }
__device__ __forceinline__ int warp_column() {
    return (int)threadIdx.x / 32 % (COLUMNS / WARP_COLUMNS) * WARP_COLUMNS;
}

// The tile's row of a thread's i-th, and column of its j-th.
__device__ __forceinline__ int row_of(int i) { return warp_row() + i * 8 + (int)threadIdx.x % 32 / 4; }
__device__ __forceinline__ int column_of(int j) {
    return warp_column() + j / 2 * 8 + (int)threadIdx.x % 4 * 2 + j % 2;
}
#else
#define DOWN (ROWS / MY_ROWS)
#define ACROSS (COLUMNS / MY_COLUMNS)
#define WARP_ACROSS (ACROSS < 8 ? ACROSS : 8)
#define WARP_DOWN (32 / WARP_ACROSS)

__device__ __forceinline__ int thread_row() {
    return (int)threadIdx.x / 32 / (ACROSS / WARP_ACROSS) * WARP_DOWN + (int)threadIdx.x % 32 / WARP_ACROSS;
}

__device__ __forceinline__ int thread_column() {
    return (int)threadIdx.x / 32 % (ACROSS / WARP_ACROSS) * WARP_ACROSS + (int)threadIdx.x % WARP_ACROSS;
}

// The tile's row of a thread's i-th, and column of its j-th: LANES side by side, the next ones a stride behind, so that
// a warp reads what lies side by side.
__device__ __forceinline__ int row_of(int i) { return (i / LANES * DOWN + thread_row()) * LANES + i % LANES; }
__device__ __forceinline__ int column_of(int j) {
    return (j / LANES * ACROSS + thread_column()) * LANES + j % LANES;
}
#endif

// An element, and whether there is one to read.
struct Found {
    const T *at;
    bool there;
};

// How threads share the copies of a slice, of WIDTH elements that lie side by side. A thread has SEEN different rows, the
// i-th of them at place(i).
template <typename Of, int WIDTH>
struct Share {
    enum {
        ALONG = Of::ALONG_DEPTH,
        COUNT = DEPTH / WIDTH,  // of copies along the depth
        SIDE = !ALONG ? Of::SIZE / WIDTH : COUNT < 8 ? COUNT : Of::SIZE < 32 ? THREADS / Of::SIZE : 8,  // neighbours
        BEHIND = THREADS / SIDE,
        SEEN = ALONG && Of::SIZE > BEHIND ? Of::SIZE / BEHIND : 1,
        TOGETHER = ALONG ? SIDE * WIDTH : BEHIND,
        STEPS = (DEPTH + TOGETHER - 1) / TOGETHER,
        ALL_TERMS = DEPTH % TOGETHER == 0,  // every thread takes part in every step
        ALL_ROWS = !ALONG || Of::SIZE >= BEHIND,
        LATER = WIDTH * sizeof(T) < 4,  // too small for cp.async: they wait in registers while a slice is multiplied
    };
    typedef typename Words<sizeof(T)>::type Word;
    Word waiting[LATER ? STEPS * SEEN : 1];

    static __device__ __forceinline__ int place(int i) {
        const int thread = (int)threadIdx.x;
        return ALONG ? thread / SIDE + i * BEHIND : thread % SIDE * WIDTH;
    }

    static __device__ __forceinline__ int depth(int step) {
        const int thread = (int)threadIdx.x;
        return ALONG ? thread % SIDE * WIDTH + step * TOGETHER : thread / SIDE + step * BEHIND;
    }

    // Call visit(step, i) for what the thread copies.
    template <typename Visit>
    static __device__ __forceinline__ void for_each(Visit visit) {
        if (!ALL_ROWS && place(0) >= Of::SIZE) return;
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
            if (ALL_TERMS || depth(step) < DEPTH)
#pragma unroll
                for (int i = 0; i < SEEN; ++i) visit(step, i);
    }

    // Ask for the elements that find(i, term) tells of. The terms are read first, since nothing is read from shared
    // memory between copies without three instructions that do nothing (sm_90).
    template <typename Term, typename Find>
    __device__ __forceinline__ void ask(const Term *terms, T *to, Find find) {
        Term known[STEPS];
#pragma unroll
        for (int step = 0; step < STEPS; ++step) known[step] = terms[ALL_TERMS ? depth(step) : depth(step) % DEPTH];
        for_each([&](int step, int i) {
            const Found found = find(i, known[step]);
            if (LATER)
                waiting[step * SEEN + i] = found.there ? read_only(reinterpret_cast<const Word *>(found.at)) : Word();
            else
                copy<WIDTH>(to + Of::at(place(i), depth(step)), found.at, found.there);
        });
    }

    // Write those that waited.
    __device__ __forceinline__ void settle(T *to) const {
        Word *const words = reinterpret_cast<Word *>(to);
        if (LATER) for_each([&](int step, int i) { words[Of::at(place(i), depth(step))] = waiting[step * SEEN + i]; });
    }
};

typedef ACC Sums[MY_ROWS][MY_COLUMNS];
#if IN_PARTS
typedef ACC Written;  // rounded once, when they are added up
#else
typedef T Written;
#endif

#if BY_TENSOR_CORES
// Read sixteen rows (or columns) from the first one on, and eight words of their terms from k on: four matrices, as
// multiply_add has them in neighbouring registers: of A those of a term follow each other, of B those of a column.
template <typename Of, bool OF_B>
__device__ __forceinline__ void read_factors(const T *slice, int first, int k, unsigned (&words)[4]) {
    const int lane = (int)threadIdx.x % 32, below = OF_B ? lane / 16 : lane / 8 % 2;
    const int behind = OF_B ? lane / 8 % 2 : lane / 16;
    if (Of::BY_DEPTH)
        read_matrices<false>(slice + Of::at(first + below * 8 + lane % 8, k + behind * 4 * PACKED), words);
    else if (PACKED == 2)
        read_matrices<true>(slice + Of::at(first + below * 8, k + behind * 8 + lane % 8), words);
    else
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = first + (OF_B ? i / 2 : i % 2) * 8 + lane / 4;
            const int term = k + (OF_B ? i % 2 : i / 2) * 4 + lane % 4;
            words[i] = bits_as<unsigned>((float)slice[Of::at(row, term)]);
        }
}

// Of floats: what tensor cores read of them, and what they would lose.
template <int COUNT>
__device__ __forceinline__ void split(unsigned (&words)[COUNT], unsigned (&rest)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT && PACKED == 1; ++i) {
        const float value = bits_as<float>(words[i]);
        words[i] = rounded(value);
        if (TENSOR == 3) rest[i] = rounded(value - bits_as<float>(words[i]));
    }
}

// Add what a slice gives to a thread's sums.
__device__ __forceinline__ void multiply(const T *slice, Sums &sum) {
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8 * PACKED) {
        unsigned b[MY_COLUMNS / 2][2], b_rest[MY_COLUMNS / 2][2];
#pragma unroll
        for (int n = 0; n < MY_COLUMNS / 2; n += 2) {
            unsigned words[4];
            read_factors<Right, true>(slice + Left::ELEMENTS, warp_column() + n * 8, k, words);
#pragma unroll
            for (int i = 0; i < 4; ++i) b[n + i / 2][i % 2] = words[i];
#pragma unroll
            for (int i = 0; i < 2; ++i) split(b[n + i], b_rest[n + i]);
        }
#pragma unroll
        for (int m = 0; m < MY_ROWS; m += 2) {
            unsigned a[4], a_rest[4];
            read_factors<Left, false>(slice, warp_row() + m * 8, k, a);
            split(a, a_rest);
#pragma unroll
            for (int n = 0; n < MY_COLUMNS / 2; ++n) {
                ACC &c0 = sum[m][2 * n], &c1 = sum[m][2 * n + 1], &c2 = sum[m + 1][2 * n], &c3 = sum[m + 1][2 * n + 1];
                if (TENSOR == 3) {  // the small ones first
                    multiply_add(c0, c1, c2, c3, a_rest, b[n]);
                    multiply_add(c0, c1, c2, c3, a, b_rest[n]);
                }
                multiply_add(c0, c1, c2, c3, a, b[n]);
            }
        }
    }
}
#else
// Read term k of rows (or columns): LANES from the first one on, the next ones so far apart.
template <typename Of, int APART, int COUNT>
__device__ __forceinline__ void read_factors(const T *slice, int first, int k, ACC (&values)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i += LANES) {
        const T *from = slice + Of::at(first + i / LANES * APART, k);
        Vector<T, LANES> some;
        if (!Of::BY_DEPTH) some = load<LANES>(from);
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane)
            values[i + lane] = (ACC)(Of::BY_DEPTH ? from[lane * Of::PITCH] : some.lane[lane]);
    }
}

// Add what a slice gives to a thread's sums.
__device__ __forceinline__ void multiply(const T *slice, Sums &sum) {
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
        ACC a[MY_ROWS], b[MY_COLUMNS];
        read_factors<Left, DOWN * LANES>(slice, row_of(0), k, a);
        read_factors<Right, ACROSS * LANES>(slice + Left::ELEMENTS, column_of(0), k, b);
#pragma unroll
        for (int i = 0; i < MY_ROWS; ++i)
#pragma unroll
            for (int j = 0; j < MY_COLUMNS; ++j) sum[i][j] += a[i] * b[j];
    }
}
#endif

// Add up the products of so many slices: list(s) makes ready what load needs for slice s and those behind it, LISTED
// slices at a time; ask(s, to) asks for slice s, and settle(to) writes what came of it to registers.
template <int LISTED, typename List, typename Ask, typename Settle>
__device__ __forceinline__ void add_slices(int slices, T *shared, Sums &sum, List list, Ask ask, Settle settle) {
#pragma unroll
    for (int i = 0; i < MY_ROWS; ++i)
#pragma unroll
        for (int j = 0; j < MY_COLUMNS; ++j) sum[i][j] = (ACC)0;
    list(0);
    __syncthreads();
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < slices) {
            ask(s, shared + s * STAGE);
            settle(shared + s * STAGE);
        }
        end_of_slice();
    }
    for (int s = 0, stage = 0, free = STAGES - 1; s < slices; ++s) {
        await_slices<STAGES - 2>();
        __syncthreads();  // slice s is there, and nobody reads the one before it any more, nor its list
        const int next = s + STAGES - 1;
        if (next < slices) {
            if (next % LISTED == 0) {
                list(next);
                __syncthreads();
            }
            ask(next, shared + free * STAGE);
        }
        end_of_slice();
        multiply(shared + stage * STAGE, sum);
        if (next < slices) settle(shared + free * STAGE);
        free = stage;
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
}

typedef MASK Taps;  // which taps, as bits

// The bits of all taps, of those along each axis.
__device__ __forceinline__ Taps combined(const Taps (&along)[3]) {
    Taps taps = 0;
#pragma unroll
    for (int a = 0; a < K0; ++a)
#pragma unroll
        for (int b = 0; b < K1; ++b)
            if (along[0] >> a & along[1] >> b & 1) taps |= along[2] << ((a * K1 + b) * K2);
    return taps;
}
