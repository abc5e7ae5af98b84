// Adaptive pooling: averages, or with MAXIMUM maxima and where they were. With one output it is global pooling.
//
//   y[n, c, o] = mean of x[n, c, i] over o's places i,   or their maximum, at the flat place argmax[n, c, o] of x
//
// for the places in common.cuh (Shares). Of equal maxima the first counts; NaN is greater than any number.
//
// Who computes what: a team of TEAM threads one output, or with channels last VECTOR channels of it. The members take
// places in turn, channels first side by side; what they find is joined through shared memory, in a fixed order.
//
// Bytes: x once, or a little more where windows share places; y, and 8 for each argmax.
//
// Fixed when compiled, besides: MAXIMUM, WITH_MASK, TEAM (a power of two). AXES is 3 for any rank.

struct AdaptivePool {
    Shares shares;
    Strides x;
    INDEX items;
    Order order;  // of y
};

// What a thread knows of a window.
#if MAXIMUM
struct alignas(16) Part {
    T value;
    long long at;  // -1: nothing yet
};

__device__ __forceinline__ void join(Part &part, const Part &other) {
    if (other.at < 0) return;
    const ACC value = (ACC)other.value, best = (ACC)part.value;
    if (part.at < 0 || beats(value, best) || (!beats(best, value) && other.at < part.at)) part = other;
}
#else
typedef ACC Part;

__device__ __forceinline__ void join(Part &part, Part other) { part += other; }
#endif

// A flat place of a window of this size; it lies beyond the window where the first index does.
__device__ __forceinline__ Place inside(int flat, const int *size) {
    const int rows = flat / size[2];
    return {{rows / size[1], rows % size[1], flat % size[2]}};
}

// Go on by so many places, as `inside` gives them.
__device__ __forceinline__ void move(Place &place, const Place &step, const int *size) {
    int carry = 0;
#pragma unroll
    for (int axis = 2; axis > 0; --axis) {
        place.at[axis] += step.at[axis] + carry;
        carry = place.at[axis] >= size[axis];
        if (carry) place.at[axis] -= size[axis];
    }
    place.at[0] += step.at[0] + carry;
}

extern "C" __global__ void gpuconv_adaptive_pool(const T *__restrict__ x, T *__restrict__ y,
                                                 long long *__restrict__ argmax, const AdaptivePool p) {
#if TEAM > 1
    SHARED(Part, parts);
#endif
    const int thread = (int)threadIdx.x, teams = (int)blockDim.x / TEAM;
#if CHANNELS_LAST
    const int team = thread % teams, member = thread / teams;
#else
    const int team = thread / TEAM, member = thread % TEAM;
#endif
    // The whole block goes round together, for the barriers.
    for (INDEX begin = (INDEX)blockIdx.x * teams; begin < p.items; begin += (INDEX)gridDim.x * teams) {
        const INDEX number = begin + team;
        Part part[VECTOR] = {};
        INDEX places = 1;
#if MAXIMUM
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) part[v].at = -1;
#endif
        if (number < p.items) {
            const Item item = item_at(number, p.order);
            const Place out = item.place[0];
            Place first;
            int size[3];
#pragma unroll
            for (int axis = 0; axis < 3; ++axis) {
                first.at[axis] = share_begin(out.at[axis], p.shares, axis);
                size[axis] = share_size(out.at[axis], p.shares, axis);
                places *= size[axis];
            }
            const T *from = plane_of(item, x, p.x) + offset(first, p.x);
            const Place step = inside(TEAM, size);
            for (Place place = inside(member, size); place.at[0] < size[0]; move(place, step, size)) {
                const Vector<T> values = load(from + offset(place, p.x));
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
#if MAXIMUM
                    if (part[v].at >= 0 && !beats((ACC)values.lane[v], (ACC)part[v].value)) continue;
                    part[v].value = values.lane[v];
                    part[v].at = ((long long)(first.at[0] + place.at[0]) * p.shares.in[1] + first.at[1] + place.at[1]) *
                                     p.shares.in[2] +
                                 first.at[2] + place.at[2];
#else
                    part[v] += (ACC)values.lane[v];
#endif
                }
            }
        }
#if TEAM > 1
        const int apart = CHANNELS_LAST ? teams : 1;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            __syncthreads();  // what was there before is read
            parts[thread] = part[v];
            for (int half = TEAM / 2; half > 0; half /= 2) {
                __syncthreads();
                if (member < half) join(parts[thread], parts[thread + half * apart]);
            }
            if (member == 0) part[v] = parts[thread];
        }
#endif
        if (number >= p.items || member > 0) continue;
#if MAXIMUM
        Vector<T> values;
        Vector<long long> at;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            values.lane[v] = part[v].value;
            at.lane[v] = part[v].at;
        }
        if (WITH_MASK) store(argmax + number * VECTOR, at);
        store(y + number * VECTOR, values);
#else
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) part[v] = mean(part[v], places);
        store(y + number * VECTOR, part);
#endif
    }
}
