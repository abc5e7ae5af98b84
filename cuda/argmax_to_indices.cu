// A max pooling's mask as flat indices into the plane of x.
//
//   indices[n, c, o] = the place o*S - before + j*D, flat, for j = argmax[n, c, o]; -1 where that is no place of x
//
// Who computes what: one thread one window, in the order of memory. Bytes per window: sizeof(T) read, 8 written.

struct ArgmaxToIndices {
    Window window;
    Strides argmax;
    INDEX items;
    Divisor channels;  // of argmax
    Divisor plane;     // output places of an image
    Divisor inner[2];  // out[1], out[2]
};

extern "C" __global__ void gpuconv_argmax_to_indices(const T *__restrict__ argmax, long long *__restrict__ indices,
                                                     const ArgmaxToIndices p) {
    FOR_ITEMS(item, p.items) {
        INDEX rest = item;
#if CHANNELS_LAST
        const INDEX channel = take(rest, p.channels);
        const Place out = unravel(take(rest, p.plane), p.inner);
#else
        const Place out = unravel(take(rest, p.plane), p.inner);
        const INDEX channel = take(rest, p.channels);
#endif
        const long long tap =
            (long long)argmax[rest * p.argmax.image + channel * p.argmax.channel + offset(out, p.argmax)];
        Place place;
        const bool named = tap >= 0 && tap < TAPS &&
                           read_place(first_read(out, p.window), (int)tap / (K1 * K2), (int)tap / K2 % K1,
                                      (int)tap % K2, p.window, place);
        indices[item] = named ? ((long long)place.at[0] * p.window.in[1] + place.at[1]) * p.window.in[2] + place.at[2]
                              : -1;
    }
}
