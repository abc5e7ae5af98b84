// The bias, written to y before the products are added to it: y[n, c, o] = b[c].
//
// Who computes what: one thread VECTOR elements of y: places side by side of one plane (channels first), or channels
// of one place. Bytes: y once, 16 at a time; b stays in the cache.

struct Bias {
    INDEX items;
    Order order;  // of y
};

extern "C" __global__ void gpuconv_bias(const T *__restrict__ b, T *__restrict__ y, const Bias p) {
    FOR_ITEMS(number, p.items) {
        const Item item = item_at(number, p.order);
        Vector<T> values;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) values.lane[v] = b[item.channel + (CHANNELS_LAST ? v : 0)];
        store(y + number * VECTOR, values);
    }
}
