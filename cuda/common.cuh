// What every kernel shares; the loader puts this text in front of each source (CuPy's disk cache doesn't see
// include files).
//
// Fixed when compiled, by #define:
//   T, ACC            element type, and the one in which sums and comparisons are done (float for __half)
//   INDEX             int, or long long where an array has 2^31 elements or more
//   VECTOR            elements that one access moves: 16 bytes where pointers and pitches allow, else fewer
//   CHANNELS_LAST     0: lanes of a vector are places side by side; 1: they are channels of one place
//   K0..K2, S0..S2, D0..D2   kernel, stride and dilation; with fewer spatial axes the first ones are 1
//   AXES              number of spatial axes
//   UNROLL            how far tap loops unroll: wholly, or for large windows not at all (compile time explodes)
//
// Sizes and paddings are run-time arguments, one struct per kernel. Output place o reads with tap j the input
// place i = o * S - before + j * D along each axis; what falls outside 0 <= i < in is padding.

#ifndef SHARED  // a block's dynamic shared memory
#define SHARED(type, name)                                                                                      \
    extern __shared__ __align__(16) unsigned char gpuconv_shared[];                                            \
    type *name = reinterpret_cast<type *>(gpuconv_shared)
#endif

template <typename R>
struct alignas(2 * sizeof(R)) Complex {  // one access, too
    R re, im;
};

template <typename R>
__device__ __forceinline__ Complex<R> &operator+=(Complex<R> &sum, const Complex<R> &term) {
    sum.re += term.re;
    sum.im += term.im;
    return sum;
}

template <typename R, typename N>
__device__ __forceinline__ R mean(R sum, N count) {
    return sum / (R)count;
}

template <typename R, typename N>
__device__ __forceinline__ Complex<R> mean(Complex<R> sum, N count) {
    return {sum.re / (R)count, sum.im / (R)count};
}

struct Divisor {
    INDEX value;
    unsigned multiplier, shift;
};

struct Window {
    int in[3], out[3], before[3];
};

struct Strides {  // of an array, in elements
    INDEX image, channel, place[3];
};

// n / d for 0 <= n < 2^31 by multiplication: T. Granlund, P. Montgomery, "Division by invariant integers using
// multiplication", 1994.
__device__ __forceinline__ int divide(int n, const Divisor &d) {
    const unsigned high = (unsigned)(((unsigned long long)(unsigned)n * d.multiplier) >> 32);
    return (int)((high + (unsigned)n) >> d.shift);
}

__device__ __forceinline__ long long divide(long long n, const Divisor &d) { return n / d.value; }

// Take the last of several indices off a flat one: n = rest * d + (what is returned).
__device__ __forceinline__ INDEX take(INDEX &n, const Divisor &d) {
    const INDEX rest = divide(n, d), last = n - rest * d.value;
    n = rest;
    return last;
}

__device__ __forceinline__ int kernel(int axis) { return axis == 0 ? K0 : axis == 1 ? K1 : K2; }
__device__ __forceinline__ int stride(int axis) { return axis == 0 ? S0 : axis == 1 ? S1 : S2; }
__device__ __forceinline__ int dilation(int axis) { return axis == 0 ? D0 : axis == 1 ? D1 : D2; }

// Blocks of 256 threads that share a multiprocessor's registers, where a kernel is to have RESIDENT of them: addresses of
// 64 bits take more registers, and so do the instructions of sm_100 and later.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define FEWER 1
#else
#define FEWER (sizeof(INDEX) > 4)
#endif
#define RESIDENT_BLOCKS (RESIDENT > 1 ? RESIDENT - FEWER : 1)

enum { UNROLLED = UNROLL };  // pragmas take no macros
#define FIRST_AXIS (3 - AXES)
#define TAPS (K0 * K1 * K2)
// Different places, and different channels, that the lanes of a vector have: one of them is 1.
#define PLACES (CHANNELS_LAST ? 1 : VECTOR)
#define CHANNELS (VECTOR / PLACES)
// Every thread takes item after item, a whole grid apart, so that any grid is large enough.
#define FOR_ITEMS(item, items)                                                                                  \
    for (INDEX item = (INDEX)blockIdx.x * blockDim.x + threadIdx.x; item < (items);                             \
         item += (INDEX)gridDim.x * blockDim.x)

template <typename E, int WIDTH = VECTOR>
struct alignas(sizeof(E) * WIDTH < 16 ? sizeof(E) * WIDTH : 16) Vector {
    E lane[WIDTH];
};

template <int WIDTH = VECTOR, typename E>
__device__ __forceinline__ Vector<E, WIDTH> load(const E *from) {
    return *reinterpret_cast<const Vector<E, WIDTH> *>(from);
}

// Stored as words by an intrinsic: what is left to the compiler it splits into elements (with 64-bit indices,
// nvcc 13.0 for sm_90 did).
template <int BYTES>
struct Words {
    typedef uint4 type;
};
template <>
struct Words<8> {
    typedef uint2 type;
};
template <>
struct Words<4> {
    typedef unsigned type;
};
template <>
struct Words<2> {
    typedef unsigned short type;
};
template <>
struct Words<1> {
    typedef unsigned char type;
};

template <typename E>
__device__ __forceinline__ void store(E *to, const Vector<E> &values) {
    typedef typename Words<alignof(Vector<E>)>::type Word;
    union {
        Vector<E> values;
        Word words[sizeof(Vector<E>) / sizeof(Word)];
    } bits = {values};
#pragma unroll
    for (int i = 0; i < (int)(sizeof(Vector<E>) / sizeof(Word)); ++i)
#ifdef __CUDA_ARCH__
        __stwb(reinterpret_cast<Word *>(to) + i, bits.words[i]);
#else
        reinterpret_cast<Word *>(to)[i] = bits.words[i];
#endif
}

template <typename E, typename S>
__device__ __forceinline__ void store(E *to, const S (&sums)[VECTOR]) {
    Vector<E> values;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) values.lane[v] = (E)sums[v];
    store(to, values);
}

// NaN is greater than any number. So asked, it takes two comparisons, where value > best || value != value took three
// and as many operations on predicates.
template <typename R>
__device__ __forceinline__ bool beats(R value, R best) {
    return !(value <= best) && best == best;
}

// A place of the output or input: one index per axis.
struct Place {
    int at[3];
};

// Unravel a flat place of a plane; `inner` are the divisors of its last two sizes.
__device__ __forceinline__ Place unravel(INDEX flat, const Divisor *inner) {
    Place place = {{0, 0, 0}};
    if (AXES > 1) {
        place.at[2] = (int)take(flat, inner[1]);
        if (AXES > 2) {
            place.at[1] = (int)take(flat, inner[0]);
            place.at[0] = (int)flat;
        } else {
            place.at[1] = (int)flat;
        }
    } else {
        place.at[2] = (int)flat;
    }
    return place;
}

template <typename I>
__device__ __forceinline__ I flat(const Place &place, const int *size) {
    return ((I)place.at[0] * size[1] + place.at[1]) * size[2] + place.at[2];
}

// Go to the next place in row-major order.
__device__ __forceinline__ void advance(Place &place, const Divisor *inner) {
    if (++place.at[2] == (int)inner[1].value && AXES > 1) {
        place.at[2] = 0;
        if (++place.at[1] == (int)inner[0].value && AXES > 2) {
            place.at[1] = 0;
            ++place.at[0];
        }
    }
}

__device__ __forceinline__ INDEX offset(const Place &place, const Strides &strides) {
    INDEX sum = 0;
#pragma unroll
    for (int axis = FIRST_AXIS; axis < 3; ++axis) sum += place.at[axis] * strides.place[axis];
    return sum;
}

#ifdef CHANNELS_LAST  // a kernel without a layout has no such items
// Items are the vectors of an array of images, in the order of memory.
struct Order {
    Divisor vectors;   // vectors in a plane (channels first), or in the channels of a place
    Divisor outer;     // channels, or places of an image (channels last)
    Divisor inner[2];  // the last two sizes of a plane
};

// What an item's lanes are: places of one channel, side by side, or channels of one place, from this one on.
struct Item {
    INDEX image, channel, flat;
    Place place[PLACES];
};

__device__ __forceinline__ Item item_at(INDEX number, const Order &order) {
    const INDEX vector = take(number, order.vectors) * VECTOR, outer = take(number, order.outer);
    Item item;
    item.image = number;
    item.channel = CHANNELS_LAST ? vector : outer;
    item.flat = CHANNELS_LAST ? outer : vector;
    Place place = unravel(item.flat, order.inner);
#pragma unroll
    for (int v = 0; v < PLACES; ++v) {
        item.place[v] = place;
        advance(place, order.inner);
    }
    return item;
}

// Where the plane of the item's channel begins.
template <typename E>
__device__ __forceinline__ const E *plane_of(const Item &item, const E *array, const Strides &strides) {
    return array + (item.image * strides.image + item.channel * strides.channel);
}
#endif

// The first place that the window of output `out` reads, padding included.
__device__ __forceinline__ Place first_read(const Place &out, const Window &window) {
    Place place = {{0, 0, 0}};
#pragma unroll
    for (int axis = FIRST_AXIS; axis < 3; ++axis)
        place.at[axis] = out.at[axis] * stride(axis) - window.before[axis];
    return place;
}

// The place that tap (a, b, c) reads, for a window that begins at `start`; false where that is padding.
__device__ __forceinline__ bool read_place(const Place &start, int a, int b, int c, const Window &window,
                                           Place &place) {
    place.at[0] = start.at[0] + a * D0;
    place.at[1] = start.at[1] + b * D1;
    place.at[2] = start.at[2] + c * D2;
    bool inside = true;
#pragma unroll
    for (int axis = FIRST_AXIS; axis < 3; ++axis)
        inside = inside && place.at[axis] >= 0 && place.at[axis] < window.in[axis];
    return inside;
}

__device__ __forceinline__ bool read_place(const Place &start, unsigned tap, const Window &window, Place &place) {
    return read_place(start, tap / (K1 * K2), tap / K2 % K1, tap % K2, window, place);
}

// The place that a mask names for output `out`; false where that is no place of x.
__device__ __forceinline__ bool named_place(const Place &out, long long tap, const Window &window, Place &place) {
    return (unsigned long long)tap < TAPS && read_place(first_read(out, window), (unsigned)tap, window, place);
}

// How many candidates there are for a window that reads a place along an axis: the windows that begin at most
// a kernel before it, or, where the kernel has holes, its taps.
__device__ __forceinline__ int covers(int axis) {
    return dilation(axis) == 1 ? (kernel(axis) - 1) / stride(axis) + 1 : kernel(axis);
}

// The (a, b, c)-th candidate for a window that reads place `in`: its output place and the tap that reads; false
// where it doesn't. Backward passes gather: each place of dx collects from these windows.
__device__ __forceinline__ bool covering(const Place &in, int a, int b, int c, const Window &window, Place &out,
                                         Place &tap) {
    const int candidate[3] = {a, b, c};
    bool reads = true;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        const int shifted = in.at[axis] + window.before[axis];  // out * S + tap * D
        if (dilation(axis) == 1) {
            out.at[axis] = shifted / stride(axis) - candidate[axis];
            tap.at[axis] = shifted - out.at[axis] * stride(axis);
            // negative where a tile begins in the gap before its first window
            reads = reads && out.at[axis] >= 0 && (unsigned)tap.at[axis] < (unsigned)kernel(axis);
        } else {
            tap.at[axis] = candidate[axis];
            const int begin = shifted - tap.at[axis] * dilation(axis);
            out.at[axis] = begin / stride(axis);
            reads = reads && begin >= 0 && out.at[axis] * stride(axis) == begin;
        }
        reads = reads && out.at[axis] < window.out[axis];
    }
    return reads;
}

__device__ __forceinline__ int flat_tap(const Place &tap) { return (tap.at[0] * K1 + tap.at[1]) * K2 + tap.at[2]; }

// How many taps of the window that begins at `start` read places low <= i < high along an axis; there is one.
__device__ __forceinline__ int taps_between(int start, int low, int high, int axis) {
    const int first = start >= low ? 0 : (low - start + dilation(axis) - 1) / dilation(axis);
    const int last = (high - 1 - start) / dilation(axis);
    return (last < kernel(axis) ? last + 1 : kernel(axis)) - first;
}

// What an average divides by: `divisor`, or where that is 0 the number of taps in low <= i < high.
struct Counted {
    int low[3], high[3], divisor;
};

__device__ __forceinline__ int divisor_of(const Place &start, const Counted &counted) {
    int taps = 1;
#pragma unroll
    for (int axis = FIRST_AXIS; axis < 3; ++axis)
        taps *= taps_between(start.at[axis], counted.low[axis], counted.high[axis], axis);
    return counted.divisor ? counted.divisor : taps;
}

// Adaptive pooling cuts each axis into `out` windows: o's places are floor(o*in / out) <= i < ceil((o+1)*in / out).
struct Shares {
    int in[3], out[3];
    Divisor by_in[3], by_out[3];
};

__device__ __forceinline__ int share_begin(int out, const Shares &shares, int axis) {
    return (int)divide((INDEX)out * shares.in[axis], shares.by_out[axis]);
}

__device__ __forceinline__ int share_size(int out, const Shares &shares, int axis) {
    const INDEX end = (INDEX)(out + 1) * shares.in[axis] + shares.out[axis] - 1;
    return (int)divide(end, shares.by_out[axis]) - share_begin(out, shares, axis);
}

// Magnitudes, and powers of them.
__device__ __forceinline__ float magnitude(float x) { return fabsf(x); }
__device__ __forceinline__ double magnitude(double x) { return fabs(x); }
__device__ __forceinline__ float magnitude(const Complex<float> &x) { return hypotf(x.re, x.im); }
__device__ __forceinline__ double magnitude(const Complex<double> &x) { return hypot(x.re, x.im); }

// x / |x|, and 0 of 0.
template <typename R>
__device__ __forceinline__ R direction(R x) {
    return x > 0 ? 1 : x < 0 ? -1 : x;  // NaN is itself
}
template <typename R>
__device__ __forceinline__ Complex<R> direction(const Complex<R> &x) {
    const R size = magnitude(x);
    return size == 0 ? x : mean(x, size);
}

__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }

// x^EXPONENT; where that is negative x^exponent, by a call that takes some forty instructions.
template <int EXPONENT>
__device__ __forceinline__ float power(float x, float exponent) {
    return EXPONENT == 0 ? 1 : EXPONENT == 1 ? x : EXPONENT == 2 ? x * x : powf(x, exponent);
}
template <int EXPONENT>
__device__ __forceinline__ double power(double x, double exponent) {
    return EXPONENT == 0 ? 1 : EXPONENT == 1 ? x : EXPONENT == 2 ? x * x : pow(x, exponent);
}

template <typename R>
__device__ __forceinline__ R scaled(R x, R factor) {
    return x * factor;
}
template <typename R>
__device__ __forceinline__ Complex<R> scaled(const Complex<R> &x, R factor) {
    return {x.re * factor, x.im * factor};
}

#ifdef CHANNELS_LAST
// Add a term of every place that the item's windows read, row by row and plane by plane: in one long sum, a large
// window's last terms would be rounded away.
template <typename S, typename F>
__device__ __forceinline__ void sum_windows(const Item &item, const T *plane, const Strides &strides,
                                            const Window &window, S (&sum)[VECTOR], F term) {
    Place start[PLACES];
#pragma unroll
    for (int v = 0; v < PLACES; ++v) start[v] = first_read(item.place[v], window);
#pragma unroll UNROLLED
    for (int a = 0; a < K0; ++a) {
        S slice[VECTOR] = {};
#pragma unroll UNROLLED
        for (int b = 0; b < K1; ++b) {
            S row[VECTOR] = {};
#pragma unroll UNROLLED
            for (int c = 0; c < K2; ++c)
#pragma unroll
                for (int v = 0; v < PLACES; ++v) {
                    Place place;
                    if (!read_place(start[v], a, b, c, window, place)) continue;
                    const Vector<T, CHANNELS> values = load<CHANNELS>(plane + offset(place, strides));
#pragma unroll
                    for (int lane = 0; lane < CHANNELS; ++lane) row[v + lane] += term(values.lane[lane]);
                }
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) slice[v] += row[v];
        }
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) sum[v] += slice[v];
    }
}

// Call visit(v, out, tap) for every window `out` that reads the item's v-th place, with the tap that does, the last
// window first.
template <typename F>
__device__ __forceinline__ void for_covering(const Item &item, const Window &window, F visit) {
#pragma unroll UNROLLED
    for (int a = 0; a < covers(0); ++a)
#pragma unroll UNROLLED
        for (int b = 0; b < covers(1); ++b)
#pragma unroll UNROLLED
            for (int c = 0; c < covers(2); ++c)
#pragma unroll
                for (int v = 0; v < PLACES; ++v) {
                    Place out, tap;
                    if (covering(item.place[v], a, b, c, window, out, tap)) visit(v, out, tap);
                }
}
#endif
