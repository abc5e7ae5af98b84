// Gradient of average pooling.
//
//   dx[n, c, i] = sum over the windows o that read i of dy[n, c, o] / (number of o's taps in low <= i < high)
//
// where low and high are the ends of x, or of its padding where that counts; or by a divisor that is given.
//
// Who computes what: one thread VECTOR elements of dx: places side by side of one plane (channels first), or channels
// of one place. Each is written once: no atomics, nothing to clear.
//
// Bytes per element of dx: one write, 16 bytes at a time; one dy read for each of about TAPS / (S0*S1*S2) windows, all
// but the first time from the cache.

struct AvgPoolBackward {
    Window window;
    Strides dy;
    INDEX items;
    Order order;  // of dx
    Counted counted;
};

extern "C" __global__ void gpuconv_avg_pool_backward(const T *__restrict__ dy, T *__restrict__ dx,
                                                     const AvgPoolBackward p) {
    FOR_ITEMS(number, p.items) {
        const Item item = item_at(number, p.order);
        const T *gradient = plane_of(item, dy, p.dy);
        ACC sum[VECTOR] = {};
        for_covering(item, p.window, [&](int v, const Place &out, const Place &) {
            const int divisor = divisor_of(first_read(out, p.window), p.counted);
            const Vector<T, CHANNELS> terms = load<CHANNELS>(gradient + offset(out, p.dy));
#pragma unroll
            for (int lane = 0; lane < CHANNELS; ++lane) sum[v + lane] += mean((ACC)terms.lane[lane], divisor);
        });
        store(dx + number * VECTOR, sum);
    }
}
