// col2im, the adjoint of im2col: every place collects its copies from the columns. With a bias it is the second half
// of a transposed convolution.
//
//   x[n, c, i] = b[c] + sum over the windows o that read i, with tap j, of col[n, c, j, o]
//
// x may be a tile of a larger array: `window.in` are the tile's places and `window.out` those outputs whose columns
// are there, all that read the tile. The strides of both are arguments.
//
// Who computes what: one thread VECTOR places side by side of one channel (channels first), or VECTOR channels of
// one place. It writes them once: no atomics, nothing to clear, the same sum in the same order every time.
//
// Bytes per element of x: one write, 16 bytes at a time, and about TAPS / (S0*S1*S2) reads of columns, each entry
// once.
//
// Fixed when compiled, besides: COL, the columns' type: ACC where they are a product's sums, not yet rounded;
// WITH_BIAS.

struct Col2im {
    Window window;
    Strides x;
    INDEX items;
    INDEX image, group, channel, tap, place;  // strides of col
    Divisor vectors;                          // vectors in a plane of the tile, or in the channels of a group
    Divisor channels;                         // channels first: of x; channels last: groups
    Divisor plane;                            // places of the tile (channels last)
    Divisor inner[2];                         // in[1], in[2]
};

extern "C" __global__ void gpuconv_col2im(const COL *__restrict__ col, const T *__restrict__ b, T *__restrict__ x,
                                          const Col2im p) {
    FOR_ITEMS(item, p.items) {
        INDEX rest = item;
        const INDEX vector = take(rest, p.vectors) * VECTOR;
        const INDEX channel = take(rest, p.channels);
        Place place[PLACES];
#if CHANNELS_LAST
        place[0] = unravel(take(rest, p.plane), p.inner);
        const COL *from = col + rest * p.image + channel * p.group + vector * p.channel;
        T *to = x + rest * p.x.image + (channel * p.vectors.value * VECTOR + vector) * p.x.channel +
                offset(place[0], p.x);
#else
        place[0] = unravel(vector, p.inner);
        const COL *from = col + rest * p.image + channel * p.channel;
        T *to = x + rest * p.x.image + channel * p.x.channel + offset(place[0], p.x);
#pragma unroll
        for (int v = 1; v < PLACES; ++v) {
            place[v] = place[v - 1];
            advance(place[v], p.inner);
        }
#endif
        ACC sum[VECTOR] = {};
#if WITH_BIAS
#pragma unroll
        for (int v = 0; v < VECTOR; ++v)
            sum[v] = (ACC)b[CHANNELS_LAST ? channel * p.vectors.value * VECTOR + vector + v : channel];
#endif
#pragma unroll UNROLLED
        for (int a = 0; a < covers(0); ++a)
#pragma unroll UNROLLED
            for (int e = 0; e < covers(1); ++e)
#pragma unroll UNROLLED
                for (int c = 0; c < covers(2); ++c)
#pragma unroll
                    for (int v = 0; v < PLACES; ++v) {
                        Place out, tap;
                        if (!covering(place[v], a, e, c, p.window, out, tap)) continue;
                        const INDEX entry = flat_tap(tap) * p.tap + flat<INDEX>(out, p.window.out) * p.place;
                        const Vector<COL, CHANNELS> values = load<CHANNELS>(from + entry);
#pragma unroll
                        for (int lane = 0; lane < CHANNELS; ++lane) sum[v + lane] += (ACC)values.lane[lane];
                    }
        store(to, sum);
    }
}
