// What becomes of a sum before it is written: b is added, then whatever isn't greater than 0 made 0; NaN stays.
//
// Fixed when compiled: WITH_BIAS, RELU.

__device__ __forceinline__ ACC finished(ACC sum, const T *b, INDEX channel) {
#if WITH_BIAS
    sum += (ACC)b[channel];
#endif
#if RELU  // complex numbers have no order
    if (sum <= (ACC)0) sum = (ACC)0;
#endif
    return sum;
}
