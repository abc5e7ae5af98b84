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
    Order order;  // of dx
};

// Whether a window after `mine` names this place, too.
__device__ __forceinline__ bool named_later(const Place &place, INDEX mine, const MASK *mask,
                                            const MaxUnpoolBackward &p) {
#pragma unroll UNROLLED
    for (int a = 0; a < covers(0); ++a)
#pragma unroll UNROLLED
        for (int b = 0; b < covers(1); ++b)
#pragma unroll UNROLLED
            for (int c = 0; c < covers(2); ++c) {
                Place out, tap;
                if (!covering(place, a, b, c, p.window, out, tap)) continue;
                if (flat<INDEX>(out, p.window.out) <= mine) continue;
                if (mask[offset(out, p.argmax)] == flat_tap(tap)) return true;
            }
    return false;
}

extern "C" __global__ void gpuconv_max_unpool_backward(const T *__restrict__ dy, const MASK *__restrict__ argmax,
                                                       T *__restrict__ dx, const MaxUnpoolBackward p) {
    FOR_ITEMS(number, p.items) {
        const Item item = item_at(number, p.order);
        const Place out = item.place[0];
        const MASK *mask = plane_of(item, argmax, p.argmax);
        Place place;
        const bool named = named_place(out, (long long)mask[offset(out, p.argmax)], p.window, place);
        dx[number] =
            named && !named_later(place, item.flat, mask, p) ? plane_of(item, dy, p.dy)[offset(place, p.dy)] : (T)0;
    }
}
