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
    int low[3], high[3];
    Divisor vectors;   // vectors in a plane of y, or in its channels
    Divisor channels;  // channels first
    Divisor plane;     // output places of an image (channels last)
    Divisor inner[2];  // out[1], out[2]
};

extern "C" __global__ void gpuconv_avg_pool(const T *__restrict__ x, T *__restrict__ y, const AvgPool p) {
    FOR_ITEMS(item, p.items) {
        INDEX rest = item;
        const INDEX vector = take(rest, p.vectors) * VECTOR;
#if CHANNELS_LAST
        Place out = unravel(take(rest, p.plane), p.inner);
        const T *from = x + rest * p.x.image + vector * p.x.channel;
#else
        const INDEX channel = take(rest, p.channels);
        Place out = unravel(vector, p.inner);
        const T *from = x + rest * p.x.image + channel * p.x.channel;
#endif
        Place start[PLACES];
#pragma unroll
        for (int v = 0; v < PLACES; ++v) {
            start[v] = first_read(out, p.window);
            advance(out, p.window.out);
        }
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
                        const T *at = from + offset(place, p.x);
#if CHANNELS_LAST
                        const Vector<T> values = load(at);
#pragma unroll
                        for (int lane = 0; lane < VECTOR; ++lane) row[lane] += (ACC)values.lane[lane];
#else
                        row[v] += (ACC)*at;
#endif
                    }
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) plane[v] += row[v];
            }
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sum[v] += plane[v];
        }
        Vector<T> values;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v)
            values.lane[v] = (T)(sum[v] / (ACC)taps_between(start[CHANNELS_LAST ? 0 : v], p.low, p.high));
        store(y + item * VECTOR, values);
    }
}
