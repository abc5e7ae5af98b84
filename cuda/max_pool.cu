// Max pooling, with the mask that its backward pass needs, or without.
//
//   y[n, c, o] = max over taps j of x[n, c, o*S - before + j*D],   argmax[n, c, o] = the first j that holds it
//
// NaN is greater than any number. Padding is never read, so it can't win; the host has checked that every window
// holds a place of x.
//
// Who computes what: one thread VECTOR outputs: places side by side of one plane (channels first), or channels of
// one place.
//
// Bytes per output: sizeof(T) and a mask's sizeof(MASK) written, 16 and VECTOR bytes at a time; S0*S1*S2 elements of x
// read from memory, TAPS from the cache.
//
// Fixed when compiled, besides: MASK (unsigned char up to 255 taps, else int), WITH_MASK.

struct MaxPool {
    Window window;
    Strides x;
    INDEX items;
    Order order;  // of y
};

extern "C" __global__ void gpuconv_max_pool(const T *__restrict__ x, T *__restrict__ y, MASK *__restrict__ argmax,
                                            const MaxPool p) {
    FOR_ITEMS(number, p.items) {
        const Item item = item_at(number, p.order);
        const T *from = plane_of(item, x, p.x);
        Place start[PLACES];
#pragma unroll
        for (int v = 0; v < PLACES; ++v) start[v] = first_read(item.place[v], p.window);
        Vector<T> best = {};
        Vector<MASK> first;
        bool found[VECTOR] = {};
#pragma unroll UNROLLED
        for (int a = 0; a < K0; ++a)
#pragma unroll UNROLLED
            for (int b = 0; b < K1; ++b)
#pragma unroll UNROLLED
                for (int c = 0; c < K2; ++c)
#pragma unroll
                    for (int v = 0; v < PLACES; ++v) {
                        Place place;
                        if (!read_place(start[v], a, b, c, p.window, place)) continue;
                        const Vector<T, CHANNELS> values = load<CHANNELS>(from + offset(place, p.x));
#pragma unroll
                        for (int channel = 0; channel < CHANNELS; ++channel) {
                            const int lane = v + channel;
                            const T value = values.lane[channel];
                            if (!found[lane] || beats((ACC)value, (ACC)best.lane[lane])) {
                                best.lane[lane] = value;
                                first.lane[lane] = (MASK)((a * K1 + b) * K2 + c);
                                found[lane] = true;
                            }
                        }
                    }
        store(y + number * VECTOR, best);
        if (WITH_MASK) store(argmax + number * VECTOR, first);
    }
}
