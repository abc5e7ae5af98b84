// Average pooling.
//
//   y[n, c, o] = (sum over taps j of x[n, c, o*S - before + j*D]) / (number of taps in low <= i < high)
//
// where low and high are the ends of x, or of its padding where that counts.
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
    int low[3], high[3];
};

extern "C" __global__ void gpuconv_avg_pool(const T *__restrict__ x, T *__restrict__ y, const AvgPool p) {
    FOR_ITEMS(number, p.items) {
        const Item item = item_at(number, p.order);
        const T *from = plane_of(item, x, p.x);
        Place start[PLACES];
#pragma unroll
        for (int v = 0; v < PLACES; ++v) start[v] = first_read(item.place[v], p.window);
        // Row by row, plane by plane: in one long sum, a large window's last terms would be rounded away.
        ACC sum[VECTOR] = {};
#pragma unroll UNROLLED
        for (int a = 0; a < K0; ++a) {
            ACC plane[VECTOR] = {};
#pragma unroll UNROLLED
            for (int b = 0; b < K1; ++b) {
                ACC row[VECTOR] = {};
#pragma unroll UNROLLED
                for (int c = 0; c < K2; ++c)
#pragma unroll
                    for (int v = 0; v < PLACES; ++v) {
                        Place place;
                        if (!read_place(start[v], a, b, c, p.window, place)) continue;
                        const Vector<T, CHANNELS> values = load<CHANNELS>(from + offset(place, p.x));
#pragma unroll
                        for (int lane = 0; lane < CHANNELS; ++lane) row[v + lane] += (ACC)values.lane[lane];
                    }
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) plane[v] += row[v];
            }
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sum[v] += plane[v];
        }
#pragma unroll
        for (int v = 0; v < VECTOR; ++v)
            sum[v] = mean(sum[v], taps_between(start[CHANNELS_LAST ? 0 : v], p.low, p.high));
        store(y + number * VECTOR, sum);
    }
}
