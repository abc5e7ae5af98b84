// Gradient of max pooling; with LAST_ONLY, max unpooling, whose x is dy here and whose result is dx.
//
//   dx[n, c, i] = sum of dy[n, c, o] over the windows o that read i with tap j, where argmax[n, c, o] == j
//   LAST_ONLY: that of the last such window alone
//
// A mask that names no tap of its window, or one in the padding, is no place of x and adds to none.
//
// Who computes what: one thread VECTOR elements of dx: places side by side of one plane (channels first), or channels
// of one place. Each is written once: no atomics, nothing to clear.
//
// Bytes per element of dx: one write, 16 bytes at a time; one dy and one mask read for each of about
// TAPS / (S0*S1*S2) windows, all but the first time from the cache.
//
// Fixed when compiled, besides: MASK, the mask's type; LAST_ONLY.

struct MaxPoolBackward {
    Window window;
    Strides dy, argmax;
    INDEX items;
    Divisor vectors;   // vectors in a plane of dx, or in its channels
    Divisor channels;  // channels first
    Divisor plane;     // places of an image (channels last)
    Divisor inner[2];  // in[1], in[2]
};

// The windows that read a place come last to first.
__device__ __forceinline__ void collect(ACC &sum, bool &found, T term) {
    if (!LAST_ONLY) sum += (ACC)term;
    else if (!found) sum = (ACC)term;
    found = true;
}

extern "C" __global__ void gpuconv_max_pool_backward(const T *__restrict__ dy, const MASK *__restrict__ argmax,
                                                     T *__restrict__ dx, const MaxPoolBackward p) {
    FOR_ITEMS(item, p.items) {
        INDEX rest = item;
        const INDEX vector = take(rest, p.vectors) * VECTOR;
#if CHANNELS_LAST
        const INDEX channel = vector;
        Place at = unravel(take(rest, p.plane), p.inner);
#else
        const INDEX channel = take(rest, p.channels);
        Place at = unravel(vector, p.inner);
#endif
        const T *gradient = dy + rest * p.dy.image + channel * p.dy.channel;
        const MASK *mask = argmax + rest * p.argmax.image + channel * p.argmax.channel;
        Place place[PLACES];
#pragma unroll
        for (int v = 0; v < PLACES; ++v) {
            place[v] = at;
            advance(at, p.window.in);
        }
        ACC sum[VECTOR] = {};
        bool found[VECTOR] = {};
#pragma unroll UNROLLED
        for (int a = 0; a < covers(0); ++a)
#pragma unroll UNROLLED
            for (int b = 0; b < covers(1); ++b)
#pragma unroll UNROLLED
                for (int c = 0; c < covers(2); ++c)
#pragma unroll
                    for (int v = 0; v < PLACES; ++v) {
                        Place out, tap;
                        if (!covering(place[v], a, b, c, p.window, out, tap)) continue;
                        const T *term = gradient + offset(out, p.dy);
                        const MASK *winner = mask + offset(out, p.argmax);
#if CHANNELS_LAST
                        const Vector<T> terms = load(term);
                        const Vector<MASK> winners = load(winner);
#pragma unroll
                        for (int lane = 0; lane < VECTOR; ++lane)
                            if (winners.lane[lane] == flat_tap(tap)) collect(sum[lane], found[lane], terms.lane[lane]);
#else
                        if (*winner == flat_tap(tap)) collect(sum[v], found[v], *term);
#endif
                    }
        Vector<T> values;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) values.lane[v] = (T)sum[v];
        store(dx + item * VECTOR, values);
    }
}
