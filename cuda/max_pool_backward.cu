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
    Order order;  // of dx
};

// The windows that read a place come last to first.
__device__ __forceinline__ void collect(ACC &sum, bool &found, T term) {
    if (!LAST_ONLY) sum += (ACC)term;
    else if (!found) sum = (ACC)term;
    found = true;
}

extern "C" __global__ void gpuconv_max_pool_backward(const T *__restrict__ dy, const MASK *__restrict__ argmax,
                                                     T *__restrict__ dx, const MaxPoolBackward p) {
    FOR_ITEMS(number, p.items) {
        const Item item = item_at(number, p.order);
        const T *gradient = plane_of(item, dy, p.dy);
        const MASK *mask = plane_of(item, argmax, p.argmax);
        ACC sum[VECTOR] = {};
        bool found[VECTOR] = {};
        for_covering(item, p.window, [&](int v, const Place &out, const Place &tap) {
            const Vector<MASK, CHANNELS> winners = load<CHANNELS>(mask + offset(out, p.argmax));
            const Vector<T, CHANNELS> terms = load<CHANNELS>(gradient + offset(out, p.dy));
#pragma unroll
            for (int lane = 0; lane < CHANNELS; ++lane)
                if (winners.lane[lane] == flat_tap(tap)) collect(sum[v + lane], found[v + lane], terms.lane[lane]);
        });
        store(dx + number * VECTOR, sum);
    }
}
