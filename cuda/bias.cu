// The bias, written to y before the products are added to it: y[n, c, o] = b[c].
//
// Who computes what: one thread VECTOR elements of y: places side by side of one plane (channels first), or channels
// of one place. Bytes: y once, 16 at a time; b stays in the cache.

struct Bias {
    INDEX items;
    INDEX stride;      // of b
    Divisor vectors;   // vectors in a plane of y, or in its channels
    Divisor channels;  // channels first
};

extern "C" __global__ void gpuconv_bias(const T *__restrict__ b, T *__restrict__ y, const Bias p) {
    FOR_ITEMS(item, p.items) {
        INDEX rest = item;
        const INDEX vector = take(rest, p.vectors) * VECTOR;
        Vector<T> values;
#if CHANNELS_LAST
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) values.lane[v] = b[(vector + v) * p.stride];
#else
        const T value = b[take(rest, p.channels) * p.stride];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) values.lane[v] = value;
#endif
        store(y + item * VECTOR, values);
    }
}
