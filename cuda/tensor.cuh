// Products of small matrices by a warp's tensor cores (sm_80 on), in TF32; on a CPU the same from what the 32 threads of
// the warp have put together.
//
// As PTX has it (mma.m16n8k8): with g = lane / 4 and t = lane % 4, a thread holds of A [16, 8] the elements (g, t),
// (g + 8, t), (g, t + 4), (g + 8, t + 4); of B [8, 8] (t, g), (t + 4, g); of C [16, 8] (g, 2t), (g, 2t + 1),
// (g + 8, 2t), (g + 8, 2t + 1).

// A float with the 10 bits of mantissa that tensor cores read: the nearest.
__device__ __forceinline__ float rounded(float x) {
#ifdef __CUDA_ARCH__
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
#else
    union {
        float value;
        unsigned bits;
    } word = {x};
    if ((word.bits & 0x7F800000u) != 0x7F800000u) word.bits = (word.bits + 0x1000u) & ~0x1FFFu;
    return word.value;
#endif
}

// C += A B.
__device__ __forceinline__ void multiply_add(float &c0, float &c1, float &c2, float &c3, const float (&a)[4],
                                             const float (&b)[2]) {
#ifdef __CUDA_ARCH__
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#else
    static float all_a[256][4], all_b[256][2];
    const int thread = (int)threadIdx.x, warp = thread / 32 * 32, g = thread % 32 / 4, t = thread % 4;
    for (int i = 0; i < 4; ++i) all_a[thread][i] = a[i];
    for (int i = 0; i < 2; ++i) all_b[thread][i] = b[i];
    __syncthreads();
    for (int k = 0; k < 8; ++k) {
        const float *upper = all_a[warp + g * 4 + k % 4], *left = all_b[warp + 2 * t * 4 + k % 4];
        const float *right = all_b[warp + (2 * t + 1) * 4 + k % 4];
        c0 += upper[k / 4 * 2] * left[k / 4];
        c1 += upper[k / 4 * 2] * right[k / 4];
        c2 += upper[k / 4 * 2 + 1] * left[k / 4];
        c3 += upper[k / 4 * 2 + 1] * right[k / 4];
    }
    __syncthreads();
#endif
}
