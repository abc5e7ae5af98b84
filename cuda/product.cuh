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
//   TENSOR                0: multiplied one by one; else by tensor cores in TF32, from sm_80 on: 1, or 3 for the three
//                         products of what TF32 holds of a float and what is left of it

#include "async.cuh"
#if TENSOR && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800)
#define BY_TENSOR_CORES 1
#include "tensor.cuh"
#else
#define BY_TENSOR_CORES 0
#endif

#define THREADS 256
#define LANES 4  // rows, and columns, of a thread that lie side by side: one access
// A row has four words more than needed: eight threads that write one column of a slice write to eight banks, four apart,
// and the four of a warp that lie behind each other fill the gaps. For tensor cores eight: of four rows, eight columns
// are read at once.
#define LEFT_PITCH (ROWS + (TENSOR ? 8 : 4))
#define RIGHT_PITCH (COLUMNS + (TENSOR ? 8 : 4))
#define LEFT_SIZE (DEPTH * LEFT_PITCH)
#define STAGE (LEFT_SIZE + DEPTH * RIGHT_PITCH)
// Threads along the rows and columns of the tile; a warp takes a patch that is as square as accesses allow.
#if ROWS % MY_ROWS || COLUMNS % MY_COLUMNS || ROWS / MY_ROWS * (COLUMNS / MY_COLUMNS) != THREADS
#error "256 threads must share a tile evenly"
#elif STAGES < 2
#error "one slice is multiplied while another arrives"
#endif
#if BY_TENSOR_CORES
#define WARP_ROWS (MY_ROWS * 8)
#define WARP_COLUMNS (MY_COLUMNS * 4)

__device__ __forceinline__ int row_of(int i) {
    return (int)threadIdx.x / 32 / (COLUMNS / WARP_COLUMNS) * WARP_ROWS + i * 8 + (int)threadIdx.x % 32 / 4;
}

__device__ __forceinline__ int column_of(int j) {
    return (int)threadIdx.x / 32 % (COLUMNS / WARP_COLUMNS) * WARP_COLUMNS + j / 2 * 8 + (int)threadIdx.x % 4 * 2 + j % 2;
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

// How threads share the elements of a slice of SIZE rows, or columns: WIDTH elements at a time, neighbours along the
// depth (ALONG_DEPTH), or along the rows. A thread has SEEN different rows, the i-th of them at place(i).
template <int SIZE, int WIDTH, bool ALONG_DEPTH>
struct Share {
    enum {
        SIDE = ALONG_DEPTH ? (SIZE < 32 ? THREADS / SIZE : 8) : SIZE / WIDTH,  // neighbours
        BEHIND = THREADS / SIDE,
        SEEN = ALONG_DEPTH ? SIZE / BEHIND : 1,
        TOGETHER = ALONG_DEPTH ? SIDE : BEHIND,
        STEPS = (DEPTH + TOGETHER - 1) / TOGETHER,
        EVEN = DEPTH % TOGETHER == 0,  // every thread takes part in every step
    };

    static __device__ __forceinline__ int place(int i) {
        const int thread = (int)threadIdx.x;
        return ALONG_DEPTH ? thread / SIDE + i * BEHIND : thread % SIDE * WIDTH;
    }

    static __device__ __forceinline__ int depth(int step) {
        const int thread = (int)threadIdx.x;
        return ALONG_DEPTH ? thread % SIDE + step * SIDE : thread / SIDE + step * BEHIND;
    }

    // Call visit(k, i, term) for what the thread copies of a slice; the terms are read first, since nothing is read
    // from shared memory between copies without three instructions that do nothing (sm_90).
    template <typename Term, typename Visit>
    static __device__ __forceinline__ void for_each(const Term *terms, Visit visit) {
        Term found[STEPS];
#pragma unroll
        for (int step = 0; step < STEPS; ++step) found[step] = terms[EVEN ? depth(step) : depth(step) % DEPTH];
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
            if (EVEN || depth(step) < DEPTH)
#pragma unroll
                for (int i = 0; i < SEEN; ++i) visit(depth(step), i, found[step]);
    }
};

typedef ACC Sums[MY_ROWS][MY_COLUMNS];

#if BY_TENSOR_CORES
// What tensor cores read of a float, and what they would lose of it.
__device__ __forceinline__ void split(float value, float &head, float &rest) {
    head = rounded(value);
    if (TENSOR == 3) rest = rounded(value - head);
}

// Add what a slice gives to a thread's sums.
__device__ __forceinline__ void multiply(const T *slice, Sums &sum) {
    const int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    const T *left = slice + t * LEFT_PITCH + row_of(0);
    const T *right = slice + LEFT_SIZE + t * RIGHT_PITCH + column_of(0) - 2 * t + g;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
        float b[MY_COLUMNS / 2][2], b_rest[MY_COLUMNS / 2][2];
#pragma unroll
        for (int n = 0; n < MY_COLUMNS / 2; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) split(right[(k + i * 4) * RIGHT_PITCH + n * 8], b[n][i], b_rest[n][i]);
#pragma unroll
        for (int m = 0; m < MY_ROWS; m += 2) {
            float a[4], a_rest[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                split(left[(k + i / 2 * 4) * LEFT_PITCH + m * 8 + i % 2 * 8], a[i], a_rest[i]);
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
template <int COUNT, int APART>
__device__ __forceinline__ void read_factors(const T *from, ACC (&values)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i += LANES) {
        const Vector<T, LANES> some = load<LANES>(from + i / LANES * APART);
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) values[i + lane] = (ACC)some.lane[lane];
    }
}

// Add what a slice gives to a thread's sums.
__device__ __forceinline__ void multiply(const T *slice, Sums &sum) {
    const T *left = slice + row_of(0), *right = slice + LEFT_SIZE + column_of(0);
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
        ACC a[MY_ROWS], b[MY_COLUMNS];
        read_factors<MY_ROWS, DOWN * LANES>(left + k * LEFT_PITCH, a);
        read_factors<MY_COLUMNS, ACROSS * LANES>(right + k * RIGHT_PITCH, b);
#pragma unroll
        for (int i = 0; i < MY_ROWS; ++i)
#pragma unroll
            for (int j = 0; j < MY_COLUMNS; ++j) sum[i][j] += a[i] * b[j];
    }
}
#endif

// Add up the products of so many slices: list(s) makes ready what load needs for slice s and those behind it, LISTED
// slices at a time; load(s, to) asks for slice s.
template <int LISTED, typename List, typename Load>
__device__ __forceinline__ void add_slices(int slices, T *shared, Sums &sum, List list, Load load) {
#pragma unroll
    for (int i = 0; i < MY_ROWS; ++i)
#pragma unroll
        for (int j = 0; j < MY_COLUMNS; ++j) sum[i][j] = (ACC)0;
    list(0);
    __syncthreads();
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < slices) load(s, shared + s * STAGE);
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
            load(next, shared + free * STAGE);
        }
        end_of_slice();
        multiply(shared + stage * STAGE, sum);
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
