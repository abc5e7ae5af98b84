// Products of small matrices by a warp's tensor cores (sm_80 on), in float16 or, of floats, in TF32; on a CPU the same
// from what the 32 threads of the warp have put together.
//
// As PTX has it (mma.m16n8k16 and m16n8k8, ldmatrix): with g = lane / 4, t = lane % 4 and so many terms of a factor
// (PACKED) in a 32-bit word, a thread holds of A [16, 8 words] the words (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4);
// of B [8 words, 8] (t, g), (t + 4, g); of C [16, 8] (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).

#define PACKED (4 / (int)sizeof(T))
static_assert(DEPTH % (8 * PACKED) == 0, "tensor cores take eight words at once");

// The same bits, as another type.
template <typename To, typename From>
__device__ __forceinline__ To bits_as(From value) {
    union {
        From value;
        To same;
    } bits = {value};
    return bits.same;
}

// A float with the 10 bits of mantissa that tensor cores read: the nearest.
__device__ __forceinline__ unsigned rounded(float x) {
    unsigned word = bits_as<unsigned>(x);
#ifdef __CUDA_ARCH__
    asm("cvt.rna.tf32.f32 %0, %0;" : "+r"(word));
#else
    if ((word & 0x7F800000u) != 0x7F800000u) word = (word + 0x1000u) & ~0x1FFFu;
#endif
    return word;
}

// Read four matrices of 8 rows of 16 bytes: thread 8i + j of a warp has the address of row j of matrix i, and a thread
// gets word t of row g of each; TURNED, elements 2t and 2t + 1, of 2 bytes, of column g.
template <bool TURNED>
__device__ __forceinline__ void read_matrices(const T *row, unsigned (&words)[4]) {
#ifdef __CUDA_ARCH__
    const unsigned at = (unsigned)__cvta_generic_to_shared(row);
    if (TURNED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(at));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(at));
#else
    static const T *all[256];
    const int thread = (int)threadIdx.x, g = thread % 32 / 4, t = thread % 4;
    all[thread] = row;
    __syncwarp();
    for (int i = 0; i < 4; ++i) {
        const T *const *matrix = all + thread / 32 * 32 + 8 * i;
        if (TURNED) {
            const T column[2] = {matrix[2 * t][g], matrix[2 * t + 1][g]};
            memcpy(&words[i], column, 4);
        } else
            memcpy(&words[i], matrix[g] + t * PACKED, 4);
    }
    __syncwarp();
#endif
}

// C += A B.
__device__ __forceinline__ void multiply_add(float &c0, float &c1, float &c2, float &c3, const unsigned (&a)[4],
                                             const unsigned (&b)[2]) {
#ifdef __CUDA_ARCH__
    if (PACKED == 2)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    static unsigned all_a[256][4], all_b[256][2];
    const int thread = (int)threadIdx.x, warp = thread / 32 * 32, g = thread % 32 / 4, t = thread % 4;
    memcpy(all_a[thread], a, sizeof a);
    memcpy(all_b[thread], b, sizeof b);
    __syncwarp();
    const auto term = [](const unsigned &word, int i) {
        T terms[PACKED];
        memcpy(terms, &word, 4);
        return (float)terms[i];
    };
    for (int k = 0; k < 8 * PACKED; ++k) {
        const int from = k / PACKED % 4, behind = k / PACKED / 4, i = k % PACKED;
        const unsigned *rows = all_a[warp + g * 4 + from] + behind * 2;
        const unsigned &left = all_b[warp + 2 * t * 4 + from][behind];
        const unsigned &right = all_b[warp + (2 * t + 1) * 4 + from][behind];
        c0 += term(rows[0], i) * term(left, i);
        c1 += term(rows[0], i) * term(right, i);
        c2 += term(rows[1], i) * term(left, i);
        c3 += term(rows[1], i) * term(right, i);
    }
    __syncwarp();
#endif
}
