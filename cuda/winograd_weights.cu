// Winograd's F(2x2, 3x3), first of two launches: the weights of each pair of channels as 16 numbers,
//
//   U[k, c] = G w[k, c] G^T,   G = [1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1]
//
// in the order in which winograd.cu reads them: blocks of KERNELS written channels k of a group, then slices of SLICE
// read channels c, in each [16, SLICE, KERNELS]. Blocks and slices are filled up with zeros. For the input gradient, k
// and c have changed places, and w is turned by 180 degrees: its taps are counted from the last one on.
//
// Who computes what: a thread one (k, c); the threads of a warp k side by side, so that U is written 128 bytes at a
// time.
//
// Bytes: w once, and U, 16/9 of it, once.

struct WinogradWeights {
    INDEX items;                // of U, with the zeros
    INDEX first;                // the first block, counted over all groups
    Divisor slices, blocks;     // slices of a block, blocks of a group
    int channels, kernels;      // of a group: those that are read, and written
    INDEX group, in, out, tap;  // strides of w: by group, c, k, tap
    INDEX corner;               // where its first tap lies
};

// The rows of G: what 3 numbers, `step` apart, become.
__device__ __forceinline__ void transform(const ACC *from, int step, ACC *to) {
    const ACC even = (ACC)0.5 * (from[0] + from[2 * step]), odd = (ACC)0.5 * from[step];
    to[0] = from[0];
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = from[2 * step];
}

extern "C" __global__ void gpuconv_winograd_weights(const T *__restrict__ w, T *__restrict__ u,
                                                    const WinogradWeights p) {
    FOR_ITEMS(item, p.items) {
        INDEX number = item;
        const int k = (int)(number % KERNELS), c = (int)(number / KERNELS % SLICE);
        number /= KERNELS * SLICE;
        T *to = u + (number * (16 * SLICE * KERNELS) + c * KERNELS + k);
        const INDEX channel = take(number, p.slices) * SLICE + c;
        INDEX group = number + p.first;
        const INDEX kernel = take(group, p.blocks) * KERNELS + k;
        const bool there = channel < p.channels && kernel < p.kernels;
        const T *from = w + (group * p.group + channel * p.in + kernel * p.out + p.corner);
        ACC taps[9], rows[12], whole[16];
#pragma unroll
        for (int i = 0; i < 9; ++i) taps[i] = there ? (ACC)from[i * p.tap] : (ACC)0;
#pragma unroll
        for (int i = 0; i < 3; ++i) transform(taps + 3 * i, 1, rows + 4 * i);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            ACC column[4];
            transform(rows + j, 4, column);
#pragma unroll
            for (int i = 0; i < 4; ++i) whole[4 * i + j] = column[i];
        }
#pragma unroll
        for (int i = 0; i < 16; ++i) to[i * (SLICE * KERNELS)] = (T)whole[i];
    }
}
