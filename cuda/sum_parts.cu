// The last stage of a sum: out[c] = sum over the parts of partial[part, c], one thread a column, in order.
//
// Bytes: the partial sums once, a few thousandths of what they were summed from.

struct SumParts {
    INDEX items, parts;
};

extern "C" __global__ void gpuconv_sum_parts(const ACC *__restrict__ partial, T *__restrict__ out, const SumParts p) {
    FOR_ITEMS(item, p.items) {
        ACC sum = partial[item];
        for (INDEX part = 1; part < p.parts; ++part) sum += partial[part * p.items + item];
        out[item] = (T)sum;
    }
}
