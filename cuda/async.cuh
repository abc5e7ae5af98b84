// Copies from global to shared memory behind what a thread computes: cp.async, from sm_80 on. Before, they are done when
// they are asked for; on a CPU then or, as late as they may be, when they are waited for.
//
// Copies are asked for one slice after another, with end_of_slice() behind each; await_slices<n>() waits until all but
// the last n are there for the thread that asked, and a barrier behind it makes them everybody's.

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define ASYNC 1
#else
#define ASYNC 0
#endif

// Copy WIDTH elements, or write zeros where there is nothing to read; then `from` may point anywhere.
template <int WIDTH, typename E>
__device__ __forceinline__ void copy(E *to, const E *from, bool there) {
    typedef Vector<E, WIDTH> Some;
#if ASYNC
    const unsigned at = (unsigned)__cvta_generic_to_shared(to);
    const int bytes = there ? (int)sizeof(Some) : 0;  // what isn't read is filled with zeros
    if (sizeof(Some) == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(at), "l"(from), "r"(bytes),
                     "n"(sizeof(Some) == 16 ? 4 : sizeof(Some)) : "memory");
#elif defined(__CUDA_ARCH__)
    Some some = {};
    if (there) some = load<WIDTH>(from);
    *reinterpret_cast<Some *>(to) = some;
#else
    host::copy_later(to, there ? from : nullptr, sizeof(Some));
#endif
}

__device__ __forceinline__ void end_of_slice() {
#if ASYNC
    asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDA_ARCH__)
    host::end_copies();
#endif
}

template <int PENDING>
__device__ __forceinline__ void await_slices() {
#if ASYNC
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#elif !defined(__CUDA_ARCH__)
    host::await_copies(PENDING);
#endif
}

// Read what no kernel writes meanwhile, and lies in global memory.
template <typename E>
__device__ __forceinline__ E read_only(const E *from) {
#ifdef __CUDA_ARCH__
    return __ldg(from);
#else
    return *from;
#endif
}
