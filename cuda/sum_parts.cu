// The last stage of a sum: out[c] = sum over the parts of partial[part, c].
//
// Who computes what: `team` threads of a block a column, each every team-th part, in order; then they add up theirs
// through shared memory, always in the same order. One thread alone would wait for memory once for each few parts.
//
// Bytes: the partial sums once, a few thousandths of what they were summed from.

struct SumParts {
    INDEX items, parts;
    int team;  // a power of two
};

extern "C" __global__ void gpuconv_sum_parts(const ACC *__restrict__ partial, T *__restrict__ out, const SumParts p) {
    SHARED(ACC, sums);
    const int thread = (int)threadIdx.x, columns = (int)blockDim.x / p.team, member = thread / columns;
    const INDEX step = (INDEX)gridDim.x * columns;
    for (INDEX first = (INDEX)blockIdx.x * columns; first < p.items; first += step) {
        const INDEX item = first + thread % columns;
        ACC sum = {};
        if (item < p.items)
#pragma unroll 8
            for (INDEX part = member; part < p.parts; part += p.team) sum += partial[part * p.items + item];
        sums[thread] = sum;
        for (int half = p.team / 2; half > 0; half /= 2) {
            __syncthreads();
            if (member < half) sums[thread] += sums[thread + half * columns];
        }
        if (member == 0 && item < p.items) out[item] = (T)sums[thread];
        __syncthreads();
    }
}
