// A max pooling's mask as flat indices into the plane of x.
//
//   indices[n, c, o] = the place o*S - before + j*D, flat, for j = argmax[n, c, o]; -1 where that is no place of x
//
// Who computes what: one thread one window, in the order of memory. Bytes per window: sizeof(T) read, 8 written.

struct ArgmaxToIndices {
    Window window;
    Strides argmax;
    INDEX items;
    Order order;  // of indices
};

extern "C" __global__ void gpuconv_argmax_to_indices(const T *__restrict__ argmax, long long *__restrict__ indices,
                                                     const ArgmaxToIndices p) {
    FOR_ITEMS(number, p.items) {
        const Item item = item_at(number, p.order);
        const long long tap = (long long)plane_of(item, argmax, p.argmax)[offset(item.place[0], p.argmax)];
        Place place;
        const bool named = named_place(item.place[0], tap, p.window, place);
        indices[number] = named ? flat<long long>(place, p.window.in) : -1;
    }
}
