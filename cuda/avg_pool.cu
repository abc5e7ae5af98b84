// Average pooling.
//
//   y[n, c, o] = (sum over taps j of x[n, c, o*S - before + j*D]) / (number of taps in low <= i < high)
//
// where low and high are the ends of x, or of its padding where that counts; or by a divisor that is given.
//
// Who computes what: one thread VECTOR outputs: places side by side of one plane (channels first), or channels of
// one place.
//
// Bytes per output: one write, 16 bytes at a time; S0*S1*S2 elements of x read from memory, TAPS from the cache.

struct AvgPool {
    Window window;
    Strides x;
    INDEX items;
    Order order;  // of y
    Counted counted;
};

extern "C" __global__ void gpuconv_avg_pool(const T *__restrict__ x, T *__restrict__ y, const AvgPool p) {
    FOR_ITEMS(number, p.items) {
        const Item item = item_at(number, p.order);
        ACC sum[VECTOR] = {};
        sum_windows(item, plane_of(item, x, p.x), p.x, p.window, sum, [](const T &value) { return (ACC)value; });
#pragma unroll
        for (int v = 0; v < PLACES; ++v) {
            const int divisor = divisor_of(first_read(item.place[v], p.window), p.counted);
#pragma unroll
            for (int lane = v; lane < v + CHANNELS; ++lane) sum[lane] = mean(sum[lane], divisor);
        }
        store(y + number * VECTOR, sum);
    }
}
