// im2col: what each output place reads, as one column of a matrix.
//
//   col[n, c, j, o] = x[n, c, o*S - before + j*D], zero where that is padding
//
// for the output places first <= o < first + places, flat, of each image. x has any strides; the strides of col
// are arguments too, so one kernel serves every order of its axes. Channels first, the places of a row lie side
// by side and rows are padded to whole vectors with zeros; channels last, the channels of a group do.
//
// Who computes what: channels first, one thread VECTOR places of one channel of one image, all taps;
// neighbouring threads take neighbouring places. Channels last, one thread VECTOR channels of one tap of one
// place; places run on over the images.
//
// Bytes per column entry: one write, 16 bytes at a time; its read is one of about TAPS / (S0*S1*S2) of the same
// element, so all but the first come from the cache.
//
// T is an unsigned integer as wide as the elements: they are only moved.

struct Im2col {
    Window window;
    Strides x;
    INDEX items, first;
    INDEX image, group, channel, tap, place;  // strides of col
    int places;                               // columns of an image (channels first)
    Divisor vectors;                          // vectors in a row of an image, or in the channels of a group
    Divisor channels;                         // channels first: of x; channels last: groups
    Divisor plane;                            // output places of an image (channels last)
    Divisor inner[2];                         // out[1], out[2]
};

extern "C" __global__ void gpuconv_im2col(const T *__restrict__ x, T *__restrict__ col, const Im2col p) {
    FOR_ITEMS(item, p.items) {
        INDEX rest = item;
        const INDEX vector = take(rest, p.vectors) * VECTOR;
#if CHANNELS_LAST
        const int tap = (int)(rest % TAPS);
        rest /= TAPS;
        const INDEX group = take(rest, p.channels);
        INDEX image = p.first + rest;
        const Place out = unravel(take(image, p.plane), p.inner);
        Place place;
        const bool inside = read_place(first_read(out, p.window), tap, p.window, place);
        Vector<T> values = {};
        if (inside)
            values = load(x + image * p.x.image + offset(place, p.x) +
                          (group * p.vectors.value * VECTOR + vector) * p.x.channel);
        store(col + rest * p.place + group * p.group + tap * p.tap + vector, values);
#else
        const INDEX channel = take(rest, p.channels), image = rest;
        const T *plane = x + image * p.x.image + channel * p.x.channel;
        T *row = col + image * p.image + channel * p.channel + vector;
        Place start[VECTOR], out = unravel(p.first + vector, p.inner);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            start[v] = first_read(out, p.window);
            advance(out, p.inner);
        }
#pragma unroll UNROLLED
        for (int a = 0; a < K0; ++a)
#pragma unroll UNROLLED
            for (int b = 0; b < K1; ++b)
#pragma unroll UNROLLED
                for (int c = 0; c < K2; ++c) {
                    Vector<T> values = {};
#pragma unroll
                    for (int v = 0; v < VECTOR; ++v) {
                        Place place;
                        if (vector + v < p.places && read_place(start[v], a, b, c, p.window, place))
                            values.lane[v] = plane[offset(place, p.x)];
                    }
                    store(row + ((a * K1 + b) * K2 + c) * p.tap, values);
                }
#endif
    }
}
