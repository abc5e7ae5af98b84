// The last stage of a sum: out[i] = sum over the parts of partial[part, i]; of a result with a bias + b[channel of i].
//
// Who computes what: `team` threads of a block a column, each every team-th part, in order; then they add up theirs
// through shared memory, always in the same order. One thread alone would wait for memory once for each few parts.
//
// Bytes: the partial sums once, a small part of what they were summed from.

#include "epilogue.cuh"

struct SumParts {
    INDEX items, parts;
    int team;  // a power of two
    Divisor plane, channels;  // items that follow each other with the same channel, and how many channels there are
};

extern "C" __global__ void gpuconv_sum_parts(const ACC *__restrict__ partial, const T *__restrict__ b, T *__restrict__ out,
                                             const SumParts p) {
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
        if (member == 0 && item < p.items) {
            INDEX channel = divide(item, p.plane);
            channel = take(channel, p.channels);
            out[item] = (T)finished(sums[thread], b, channel);
        }
        __syncthreads();
    }
}
