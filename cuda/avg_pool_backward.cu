// Gradient of average pooling.
//
//   dx[n, c, i] = sum over the windows o that read i of dy[n, c, o] / (number of o's taps in low <= i < high)
//
// where low and high are the ends of x, or of its padding where that counts.
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
    int low[3], high[3];
};

extern "C" __global__ void gpuconv_avg_pool_backward(const T *__restrict__ dy, T *__restrict__ dx,
                                                     const AvgPoolBackward p) {
    FOR_ITEMS(number, p.items) {
        const Item item = item_at(number, p.order);
        const T *gradient = plane_of(item, dy, p.dy);
        ACC sum[VECTOR] = {};
#pragma unroll UNROLLED
        for (int a = 0; a < covers(0); ++a)
#pragma unroll UNROLLED
            for (int b = 0; b < covers(1); ++b)
#pragma unroll UNROLLED
                for (int c = 0; c < covers(2); ++c)
#pragma unroll
                    for (int v = 0; v < PLACES; ++v) {
                        Place out, tap;
                        if (!covering(item.place[v], a, b, c, p.window, out, tap)) continue;
                        const int taps = taps_between(first_read(out, p.window), p.low, p.high);
                        const Vector<T, CHANNELS> terms = load<CHANNELS>(gradient + offset(out, p.dy));
#pragma unroll
                        for (int lane = 0; lane < CHANNELS; ++lane) sum[v + lane] += mean((ACC)terms.lane[lane], taps);
                    }
        store(dx + number * VECTOR, sum);
    }
}
