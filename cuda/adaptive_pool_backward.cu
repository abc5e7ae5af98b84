// Gradient of adaptive pooling: of averages, or with MAXIMUM of maxima.
//
//   dx[n, c, i] = sum of dy[n, c, o] / (number of o's places) over the windows o that have i,
//   MAXIMUM:      sum of dy[n, c, o] over those of them whose argmax[n, c, o] is i, as a flat place of x
//
// for the places in common.cuh (Shares): i is in floor(i*out / in) <= o < ceil((i+1)*out / in).
//
// Who computes what: one thread one element of dx, in the order of memory; no atomics, nothing to clear.
//
// Bytes per element: one written; dy, and argmax, from the cache.
//
// Fixed when compiled, besides: MAXIMUM; MASK, argmax's type. AXES is 3 for any rank.

struct AdaptivePoolBackward {
    Shares shares;
    Strides dy, argmax;
    INDEX items;
    Order order;  // of dx
};

extern "C" __global__ void gpuconv_adaptive_pool_backward(const T *__restrict__ dy, const MASK *__restrict__ argmax,
                                                          T *__restrict__ dx, const AdaptivePoolBackward p) {
    FOR_ITEMS(number, p.items) {
        const Item item = item_at(number, p.order);
        const Place place = item.place[0];
        const T *gradient = plane_of(item, dy, p.dy);
        Place first, last, out;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
            const INDEX scaled = (INDEX)place.at[axis] * p.shares.out[axis];
            first.at[axis] = (int)divide(scaled, p.shares.by_in[axis]);
            last.at[axis] = (int)divide(scaled + p.shares.out[axis] - 1, p.shares.by_in[axis]);
        }
        ACC sum = {};
        for (out.at[0] = first.at[0]; out.at[0] <= last.at[0]; ++out.at[0])
            for (out.at[1] = first.at[1]; out.at[1] <= last.at[1]; ++out.at[1])
                for (out.at[2] = first.at[2]; out.at[2] <= last.at[2]; ++out.at[2]) {
                    const T *term = gradient + offset(out, p.dy);
#if MAXIMUM
                    const long long winner = (long long)plane_of(item, argmax, p.argmax)[offset(out, p.argmax)];
                    if (winner == item.flat) sum += (ACC)*term;
#else
                    INDEX places = 1;
#pragma unroll
                    for (int axis = 0; axis < 3; ++axis) places *= share_size(out.at[axis], p.shares, axis);
                    sum += mean((ACC)*term, places);
#endif
                }
        dx[number] = (T)sum;
    }
}
