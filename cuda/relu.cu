// The rectifier, where y lies: y[i] = max(y[i], 0). NaN is not <= 0, and so passes; -0 becomes 0.
//
// Who computes what: one thread VECTOR elements side by side. Bytes: y read and written once, 16 at a time.

struct Relu {
    INDEX items;
};

extern "C" __global__ void gpuconv_relu(T *__restrict__ y, const Relu p) {
    FOR_ITEMS(number, p.items) {
        Vector<T> values = load(y + number * VECTOR);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v)
            if ((ACC)values.lane[v] <= 0) values.lane[v] = (T)0;
        store(y + number * VECTOR, values);
    }
}
