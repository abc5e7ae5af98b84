// Gradient of Lp pooling.
//
//   dx[n, c, i] = x / |x| * sum over the windows o that read i of dy[n, c, o] * (|x| / y[n, c, o])^(norm-1)
//
// and nothing of windows whose norm is 0.
//
// Who computes what: one thread VECTOR elements of dx: places side by side of one plane (channels first), or channels
// of one place. Each is written once: no atomics, nothing to clear.
//
// Bytes per element of dx: one write and one read of x, 16 bytes at a time (channels first, x an element at a time); one
// dy and y read for each of about TAPS / (S0*S1*S2) windows, all but the first time from the cache.
//
// Fixed when compiled, besides: Y, REAL and NORM as in lp_pool.cu.

struct LpPoolBackward {
    Window window;
    Strides dy, x, y;
    INDEX items;
    Order order;  // of dx
    double norm;
};

extern "C" __global__ void gpuconv_lp_pool_backward(const Y *__restrict__ dy, const T *__restrict__ x,
                                                    const Y *__restrict__ y, T *__restrict__ dx,
                                                    const LpPoolBackward p) {
    FOR_ITEMS(number, p.items) {
        const Item item = item_at(number, p.order);
        const Y *gradient = plane_of(item, dy, p.dy), *norms = plane_of(item, y, p.y);
        const T *from = plane_of(item, x, p.x);
        ACC value[VECTOR];
#pragma unroll
        for (int v = 0; v < PLACES; ++v) {
            const Vector<T, CHANNELS> values = load<CHANNELS>(from + offset(item.place[v], p.x));
#pragma unroll
            for (int lane = 0; lane < CHANNELS; ++lane) value[v + lane] = (ACC)values.lane[lane];
        }
        REAL sum[VECTOR] = {};
        for_covering(item, p.window, [&](int v, const Place &out, const Place &) {
            const Vector<Y, CHANNELS> terms = load<CHANNELS>(gradient + offset(out, p.dy));
            const Vector<Y, CHANNELS> of = load<CHANNELS>(norms + offset(out, p.y));
#pragma unroll
            for (int lane = 0; lane < CHANNELS; ++lane) {
                const REAL norm = (REAL)of.lane[lane], term = (REAL)terms.lane[lane];
                // The power of a quotient of at most 1: the powers alone may be beyond the type.
                if (norm != 0)
                    sum[v + lane] += NORM == 2 ? term / norm
                                               : term * power<NORM - 1>(magnitude(value[v + lane]) / norm,
                                                                        (REAL)(p.norm - 1));
            }
        });
        ACC share[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            // Not x * (sum / |x|): of a tiny x that quotient is infinite.
            share[v] = scaled(NORM == 2 ? value[v] : direction(value[v]), sum[v]);
        }
        store(dx + number * VECTOR, share);
    }
}
