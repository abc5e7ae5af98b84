// Max pooling, with the mask that its backward pass needs, or without.
//
//   y[n, c, o] = max over taps j of x[n, c, o*S - before + j*D],   argmax[n, c, o] = the first j that holds it
//
// NaN is greater than any number. Padding is never read, so it can't win; the host has checked that every window
// holds a place of x.
//
// Who computes what: one thread VECTOR outputs: places side by side of one plane (channels first), or channels of
// one place.
//
// Bytes per output: sizeof(T) and a mask's sizeof(MASK) written, 16 and VECTOR bytes at a time; S0*S1*S2 elements of x
// read from memory, TAPS from the cache.
//
// Fixed when compiled, besides: MASK (unsigned char up to 255 taps, else int), WITH_MASK.

struct MaxPool {
    Window window;
    Strides x;
    INDEX items;
    Divisor vectors;   // vectors in a plane of y, or in its channels
    Divisor channels;  // channels first
    Divisor plane;     // output places of an image (channels last)
    Divisor inner[2];  // out[1], out[2]
};

__device__ __forceinline__ bool beats(ACC value, ACC best) { return value > best || (value != value && best == best); }

extern "C" __global__ void gpuconv_max_pool(const T *__restrict__ x, T *__restrict__ y, MASK *__restrict__ argmax,
                                            const MaxPool p) {
    FOR_ITEMS(item, p.items) {
        INDEX rest = item;
        const INDEX vector = take(rest, p.vectors) * VECTOR;
#if CHANNELS_LAST
        Place out = unravel(take(rest, p.plane), p.inner);
        const T *from = x + rest * p.x.image + vector * p.x.channel;
#else
        const INDEX channel = take(rest, p.channels);
        Place out = unravel(vector, p.inner);
        const T *from = x + rest * p.x.image + channel * p.x.channel;
#endif
        Place start[PLACES];
#pragma unroll
        for (int v = 0; v < PLACES; ++v) {
            start[v] = first_read(out, p.window);
            advance(out, p.window.out);
        }
        Vector<T> best = {};
        Vector<MASK> first;
        bool found[VECTOR] = {};
#pragma unroll UNROLLED
        for (int a = 0; a < K0; ++a)
#pragma unroll UNROLLED
            for (int b = 0; b < K1; ++b)
#pragma unroll UNROLLED
                for (int c = 0; c < K2; ++c)
#pragma unroll
                    for (int v = 0; v < PLACES; ++v) {
                        Place place;
                        if (!read_place(start[v], a, b, c, p.window, place)) continue;
                        const T *at = from + offset(place, p.x);
#if CHANNELS_LAST
                        const Vector<T> values = load(at);
#endif
#pragma unroll
                        for (int lane = v; lane < v + VECTOR / PLACES; ++lane) {
#if CHANNELS_LAST
                            const T value = values.lane[lane];
#else
                            const T value = *at;
#endif
                            if (!found[lane] || beats((ACC)value, (ACC)best.lane[lane])) {
                                best.lane[lane] = value;
                                first.lane[lane] = (MASK)((a * K1 + b) * K2 + c);
                                found[lane] = true;
                            }
                        }
                    }
        store(y + item * VECTOR, best);
        if (WITH_MASK) store(argmax + item * VECTOR, first);
    }
}
