// im2col, two spatial axes, channels first.
//
//   col[n, c, i, j, p, q] = x[n, c, p*STRIDE_H + i*DILATION_H - pad_h, q*STRIDE_W + j*DILATION_W - pad_w],
//   zero where that lies outside of x.
//
// Who computes what: one thread an output place (n, c, p, q), all its taps; neighbouring threads take
// neighbouring q, so that reads and writes of a warp lie side by side. The grid is one-dimensional and
// strides over the places, so n*c never meets the limit of the other grid axes.
//
// Bytes per place: writes KH*KW elements; reads as many, all but one in about STRIDE_H*STRIDE_W out of the cache.
//
// Fixed when compiled: T (element type), INDEX (int, or long long from 2^31 elements on), KH, KW, STRIDE_H,
// STRIDE_W, DILATION_H, DILATION_W, so that the tap loops unroll. Sizes and paddings are arguments.

extern "C" __global__ void gpuconv_im2col(const T *__restrict__ x, T *__restrict__ col, INDEX planes, int height,
                                          int width, int out_height, int out_width, int pad_h, int pad_w) {
    const INDEX places = (INDEX)out_height * out_width;
    const INDEX step = (INDEX)gridDim.x * blockDim.x;
    for (INDEX at = (INDEX)blockIdx.x * blockDim.x + threadIdx.x; at < planes * places; at += step) {
        const INDEX plane = at / places;
        const int place = (int)(at % places);
        const int top = place / out_width * STRIDE_H - pad_h;
        const int left = place % out_width * STRIDE_W - pad_w;
        const T *image = x + plane * height * width;
        T *out = col + plane * (KH * KW) * places + place;
#pragma unroll
        for (int i = 0; i < KH; ++i) {
#pragma unroll
            for (int j = 0; j < KW; ++j) {
                const int row = top + i * DILATION_H;
                const int column = left + j * DILATION_W;
                const bool inside = row >= 0 && row < height && column >= 0 && column < width;
                out[(i * KW + j) * places] = inside ? image[(INDEX)row * width + column] : (T)0;
            }
        }
    }
}
