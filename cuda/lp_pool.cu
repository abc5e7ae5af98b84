// Lp pooling: the norm of every window.
//
//   y[n, c, o] = (sum over taps j of |x[n, c, o*S - before + j*D]|^norm)^(1/norm)
//
// over the places inside x. Of complex numbers too; y is real.
//
// Who computes what: one thread VECTOR outputs: places side by side of one plane (channels first), or channels of
// one place.
//
// Bytes per output: one write, 16 bytes at a time; S0*S1*S2 elements of x read from memory, TAPS from the cache. A norm
// that is neither 1 nor 2 takes some forty instructions a tap.
//
// Fixed when compiled, besides: Y, REAL (a magnitude's type, and the one it is summed in), NORM (1, 2, or -1: any).

struct LpPool {
    Window window;
    Strides x;
    INDEX items;
    Order order;  // of y
    double norm;
};

extern "C" __global__ void gpuconv_lp_pool(const T *__restrict__ x, Y *__restrict__ y, const LpPool p) {
    FOR_ITEMS(number, p.items) {
        const Item item = item_at(number, p.order);
        REAL sum[VECTOR] = {};
        sum_windows(item, plane_of(item, x, p.x), p.x, p.window, sum,
                    [&](const T &value) { return power<NORM>(magnitude((ACC)value), (REAL)p.norm); });
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) sum[v] = NORM == 2 ? root(sum[v]) : power<NORM>(sum[v], (REAL)(1 / p.norm));
        store(y + number * VECTOR, sum);
    }
}
