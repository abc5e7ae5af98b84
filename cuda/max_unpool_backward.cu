// Gradient of max unpooling.
//
//   dx[n, c, o] = dy[n, c, i] for the place i = o*S - before + j*D that j = argmax[n, c, o] names
//
// or 0 where a later window names i as well, for that one's value stood there; or where i is no place of dy.
//
// Who computes what: one thread one window, in the order of memory.
//
// Bytes per window: sizeof(MASK) and an element of dy read, an element written; where windows overlap, the masks of
// the later ones that read i, from the cache.
//
// Fixed when compiled, besides: MASK, the mask's type.

struct MaxUnpoolBackward {
    Window window;
    Strides dy, argmax;
    INDEX items;
    Divisor channels;
    Divisor plane;     // windows of an image
    Divisor inner[2];  // out[1], out[2]
};

// Whether a window after `mine` names this place, too.
__device__ __forceinline__ bool named_later(const Place &place, const Place &mine, const MASK *mask,
                                            const MaxUnpoolBackward &p) {
    const INDEX here = flat_out(mine, p.window);
#pragma unroll UNROLLED
    for (int a = 0; a < covers(0); ++a)
#pragma unroll UNROLLED
        for (int b = 0; b < covers(1); ++b)
#pragma unroll UNROLLED
            for (int c = 0; c < covers(2); ++c) {
                Place out, tap;
                if (!covering(place, a, b, c, p.window, out, tap) || flat_out(out, p.window) <= here) continue;
                if (mask[offset(out, p.argmax)] == flat_tap(tap)) return true;
            }
    return false;
}

extern "C" __global__ void gpuconv_max_unpool_backward(const T *__restrict__ dy, const MASK *__restrict__ argmax,
                                                       T *__restrict__ dx, const MaxUnpoolBackward p) {
    FOR_ITEMS(item, p.items) {
        INDEX rest = item;
#if CHANNELS_LAST
        const INDEX channel = take(rest, p.channels);
        const Place out = unravel(take(rest, p.plane), p.inner);
#else
        const Place out = unravel(take(rest, p.plane), p.inner);
        const INDEX channel = take(rest, p.channels);
#endif
        const MASK *mask = argmax + rest * p.argmax.image + channel * p.argmax.channel;
        const long long tap = (long long)mask[offset(out, p.argmax)];
        Place place;
        const bool named = tap >= 0 && tap < TAPS &&
                           read_place(first_read(out, p.window), (int)tap / (K1 * K2), (int)tap / K2 % K1,
                                      (int)tap % K2, p.window, place);
        dx[item] = named && !named_later(place, out, mask, p)
                       ? dy[rest * p.dy.image + channel * p.dy.channel + offset(place, p.dy)]
                       : (T)0;
    }
}
