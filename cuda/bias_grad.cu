// Gradient of the bias, first of two stages: sums over parts of the batch.
//
//   partial[part, c] = sum of dy[n, c, o] over the images and places (n, o) of this part
//
// The second stage, sum_parts.cu, adds the parts. Neither has atomics; the cuts depend on the shape alone, so a sum
// is the same every time.
//
// Who computes what: channels first, one block a part of one channel, its threads VECTOR places at a time. Channels
// last, one block a part of LANES vectors of channels, blockDim / LANES rows of (n, o) at a time. The threads of a block
// then add up through shared memory.
//
// Bytes: dy once, 16 at a time.

struct BiasGrad {
    Strides dy;
    INDEX total, length;  // places of the batch, and of a part
    INDEX parts;
    INDEX channels;
    Divisor plane;     // places of an image
    Divisor inner[2];  // the last two sizes of dy
};

#define LANES 32

extern "C" __global__ void gpuconv_bias_grad(const T *__restrict__ dy, ACC *__restrict__ partial, const BiasGrad p) {
    SHARED(ACC, sums);
    const INDEX part = blockIdx.x % p.parts, begin = part * p.length;
    const INDEX end = begin + p.length < p.total ? begin + p.length : p.total;
    const int thread = (int)threadIdx.x, threads = (int)blockDim.x;
#if CHANNELS_LAST
    const int lane = thread % LANES, row = thread / LANES, rows = threads / LANES;
    const INDEX channel = (blockIdx.x / p.parts * LANES + lane) * VECTOR;
    ACC sum[VECTOR] = {};
    if (channel < p.channels)
        for (INDEX at = begin + row; at < end; at += rows) {
            INDEX image = at;
            const INDEX place = take(image, p.plane);
            const Vector<T> values = load(dy + image * p.dy.image + offset(unravel(place, p.inner), p.dy) +
                                          channel * p.dy.channel);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sum[v] += (ACC)values.lane[v];
        }
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) sums[(v * rows + row) * LANES + lane] = sum[v];
    __syncthreads();
    if (row == 0 && channel < p.channels)
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            ACC total = sums[v * rows * LANES + lane];
            for (int r = 1; r < rows; ++r) total += sums[(v * rows + r) * LANES + lane];
            partial[part * p.channels + channel + v] = total;
        }
#else
    const INDEX channel = blockIdx.x / p.parts;
    ACC sum = {};
    for (INDEX at = begin + (INDEX)thread * VECTOR; at < end; at += (INDEX)threads * VECTOR) {
        INDEX image = at;
        const INDEX place = take(image, p.plane);
        const Vector<T> values = load(dy + image * p.dy.image + offset(unravel(place, p.inner), p.dy) +
                                      channel * p.dy.channel);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) sum += (ACC)values.lane[v];
    }
    sums[thread] = sum;
    for (int half = threads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) sums[thread] += sums[thread + half];
    }
    if (thread == 0) partial[part * p.channels + channel] = sums[0];
#endif
}
