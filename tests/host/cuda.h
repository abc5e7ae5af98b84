// CUDA's language on a CPU, as far as this project's kernels use it; the types are those of CUDA's own headers.
// The text of this file goes in front of a kernel's.
//
// The threads of a launch run one after the other, in an order that the caller gives, those of a warp together. Where
// a kernel has barriers, each thread of a block is a fiber, left at a barrier and resumed in the next phase: at a
// block's when all its threads are there, at a warp's when the warp is, while the other warps stay where they are.
// A kernel without barriers runs as one fiber: a fault can leave it from anywhere, and is a message instead of a crash.
//
// An asynchronous copy is done as late as it may be, when its thread waits for it, and makes NaN of its target before;
// or, where the caller wants it, at once.

#include <cmath>
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector_types.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define __asan_poison_memory_region(from, size)
#define __asan_unpoison_memory_region(from, size)
#define __sanitizer_start_switch_fiber(...)
#define __sanitizer_finish_switch_fiber(...)
#endif

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static_assert(false, "shared memory is declared by SHARED(type, name)");
// `name` points to this block's dynamic shared memory.
#define SHARED(type, name) type *name = reinterpret_cast<type *>(host::shared)
#define __syncthreads() host::barrier(__LINE__, false)
#define __syncwarp() host::barrier(__LINE__, true)

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

namespace host {

struct Seen;  // races.h

struct Array {
    size_t start, size;
    Seen *seen;
};

struct Launch {
    void (*call)(void **);
    void **arguments;
    unsigned grid[3], block[3];
    const unsigned *blocks, *threads;  // flat indices in the order to run
    unsigned block_count, thread_count, shared_size, copies_at_once;
    const Array *arrays;  // those in which races are looked for
    unsigned array_count;
};

struct Copy {
    unsigned char *to;
    const void *from;  // or null, for zeros
    int size, group;
};

struct Fiber {
    ucontext_t context;  // where it begins
    jmp_buf place;       // where it goes on
    bool begun;
    const void *stack;
    size_t stack_size;
    void *fake_stack;  // the address sanitizer's
    void (*job)(const Fiber &);
    unsigned thread;
    int line;  // of the barrier it waits at
    bool at_warps, ended;
    Copy *copies;  // asked for and not yet done, of groups of which so many were ended
    int copy_count, groups;
};

const size_t STACK = 128 << 10, MOST_THREADS = 1024, MOST_SHARED = 48 << 10, GUARD = 256, MOST_COPIES = 256;
static Launch launch;
static Fiber scheduler, fibers[MOST_THREADS], *running = &scheduler;
alignas(16) static unsigned char shared[MOST_SHARED + GUARD];
static char message[2000];

static void report(const char *format, ...) {
    const int place = snprintf(message, sizeof message, "block (%u, %u, %u), thread (%u, %u, %u): ", blockIdx.x,
                               blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    va_list values;
    va_start(values, format);
    vsnprintf(message + place, sizeof message - place, format, values);
    va_end(values);
}

static void switch_to(Fiber &to) {
    Fiber &from = *running;
    running = &to;
    from.begun = true;
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_size);
#ifdef __SANITIZE_ADDRESS__  // which takes _longjmp for the end of what this stack holds
    swapcontext(&from.context, &to.context);
#else  // without swapcontext's two system calls, which took most of the time of kernels with barriers
    if (!_setjmp(from.place)) to.begun ? _longjmp(to.place, 1) : (void)setcontext(&to.context);
#endif
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

[[noreturn]] static void leave() {
    switch_to(scheduler);
    abort();
}

#define HOST_FAIL(...) (host::report(__VA_ARGS__), host::leave())

#ifdef HOST_RACES
}
#include "races.h"
namespace host {
#else
#define touch_copy(copy, arriving)
#define begin_phase(of_block)
#endif

static void on_signal(int number, siginfo_t *info, void *) {
    if (running == &scheduler) signal(number, SIG_DFL);  // not the kernel's: let it happen again
    else if (number == SIGFPE) HOST_FAIL("division by zero");
    else HOST_FAIL("access to %p, where there is no memory", info->si_addr);
}

#ifdef __SANITIZE_ADDRESS__
static void on_asan_report(const char *text) {
    if (!message[0]) snprintf(message, sizeof message, "%s", text);
}
#endif

static void begin() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_size);
    for (;;) {
        running->job(*running);
        running->ended = true;
        switch_to(scheduler);
    }
}

static void make(Fiber &fiber) {
    if (!fiber.stack) fiber.stack = malloc(STACK), fiber.copies = (Copy *)malloc(MOST_COPIES * sizeof(Copy));
    fiber.stack_size = STACK;
    fiber.begun = false;
    __asan_unpoison_memory_region(fiber.stack, STACK);  // one that failed left its frames there
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = const_cast<void *>(fiber.stack);
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, begin, 0);
    fiber.context.uc_stack.ss_size = 0;  // else the sanitizer forgets, at each switch, what guards that stack
}

static void prepare(Fiber &fiber, void (*job)(const Fiber &), unsigned thread) {
    if (!fiber.ended) make(fiber);  // new, or left in the midst of a launch that failed
    fiber.job = job;
    fiber.thread = thread;
    fiber.line = 0;
    fiber.at_warps = fiber.ended = false;
}

static uint3 unravel(unsigned flat, const dim3 &size) {
    return {flat % size.x, flat / size.x % size.y, flat / size.x / size.y};
}

static void run_thread(unsigned thread) {
    threadIdx = unravel(thread, blockDim);
    running->thread = thread;
    running->copy_count = running->groups = 0;
    launch.call(launch.arguments);
}

static void begin_block(unsigned i) {
    blockIdx = unravel(launch.blocks[i], gridDim);
    begin_phase(true);
    memset(shared, 0xFF, launch.shared_size + GUARD);  // NaN, for every floating-point type
    __asan_poison_memory_region(shared + launch.shared_size, GUARD);
}

static void end_block() {
    __asan_unpoison_memory_region(shared + launch.shared_size, GUARD);
    for (size_t i = launch.shared_size; i < launch.shared_size + GUARD && !message[0]; ++i)
        if (shared[i] != 0xFF)
            report("byte %zu of %u bytes of shared memory was written", i, launch.shared_size);
}

static void barrier(int line, bool of_warp) {
    Fiber &fiber = *running;
    fiber.line = line;
    fiber.at_warps = of_warp;
    switch_to(scheduler);
    threadIdx = unravel(fiber.thread, blockDim);
}

static void do_copy(const Copy &copy) {
    touch_copy(copy, false);
    copy.from ? memcpy(copy.to, copy.from, copy.size) : memset(copy.to, 0, copy.size);
}

static void copy_later(void *to, const void *from, int size) {
    Fiber &fiber = *running;
    const size_t at = (unsigned char *)to - shared;
    if (at >= launch.shared_size || at + size > launch.shared_size) HOST_FAIL("copy to %p, not to shared memory", to);
    if (((size_t)to | (size_t)from) % size) HOST_FAIL("copy of %d bytes, misaligned, from %p to %p", size, from, to);
    if (fiber.copy_count == MOST_COPIES) HOST_FAIL("more than %zu copies at once", MOST_COPIES);
    const Copy copy = {(unsigned char *)to, from, size, fiber.groups};
    if (launch.copies_at_once) return do_copy(copy);
    touch_copy(copy, true);
    memset(to, 0xFF, size);
    fiber.copies[fiber.copy_count++] = copy;
}

static void end_copies() { ++running->groups; }

static void await_copies(int pending) {
    Fiber &fiber = *running;
    int done = 0;
    while (done < fiber.copy_count && fiber.copies[done].group < fiber.groups - pending) do_copy(fiber.copies[done++]);
    fiber.copy_count -= done;
    memmove(fiber.copies, fiber.copies + done, fiber.copy_count * sizeof(Copy));
}

// Whether fibers from `begin` to `end` wait for each other; false when all of them have ended, or a GPU would hang.
static bool wait_together(unsigned begin, unsigned end) {
    const Fiber &first = fibers[begin];
    for (unsigned i = begin + 1; i < end; ++i) {
        const Fiber &other = fibers[i];
        const bool same_barrier = other.line == first.line && other.at_warps == first.at_warps;
        if (other.ended == first.ended && (first.ended || same_barrier)) continue;
        const Fiber &waits = first.ended ? other : first, &differs = first.ended ? first : other;
        threadIdx = unravel(waits.thread, blockDim);
        if (differs.ended)
            report("waits at a barrier (line %d), but thread %u has ended", waits.line, differs.thread);
        else
            report("waits at the barrier in line %d, but thread %u at that in line %d", waits.line,
                   differs.thread, differs.line);
        return false;
    }
    return !first.ended;
}

// Run threads of one warp to the next barrier of the block, or to their end; return where the next warp begins.
static unsigned run_warp(unsigned begin) {
    unsigned end = begin;
    while (end < launch.thread_count && fibers[end].thread / 32 == fibers[begin].thread / 32) ++end;
    do
        for (unsigned t = begin; t < end && !message[0]; ++t) switch_to(fibers[t]);
    while (!message[0] && fibers[begin].at_warps && wait_together(begin, end));
    return end;
}

static void run_with_barriers() {
    for (unsigned i = 0; i < launch.block_count && !message[0]; ++i) {
        begin_block(i);
        for (unsigned t = 0; t < launch.thread_count; ++t)
            prepare(fibers[t], [](const Fiber &fiber) { run_thread(fiber.thread); }, launch.threads[t]);
        do {
            begin_phase(false);
            for (unsigned t = 0; t < launch.thread_count && !message[0];) t = run_warp(t);
        } while (!message[0] && wait_together(0, launch.thread_count));
        end_block();
    }
}

static void run_without_barriers() {
    prepare(fibers[0], [](const Fiber &) {
        for (unsigned i = 0; i < launch.block_count && !message[0]; ++i) {
            begin_block(i);
            for (unsigned t = 0; t < launch.thread_count; ++t) run_thread(launch.threads[t]);
            end_block();
        }
    }, 0);
    switch_to(fibers[0]);
    __asan_unpoison_memory_region(shared, sizeof shared);
}

// What a kernel's signature says.

struct Entry {
    void (*call)(void **);
    int count, size[16];
    enum Kind { VALUE, CONST_POINTER, POINTER } kind[16];
};

template <typename A>
struct Argument {
    static A get(void *at) { return *static_cast<A *>(at); }
    static const Entry::Kind kind = Entry::VALUE;
};
template <typename A>
struct Argument<const A> : Argument<A> {};
template <typename A>
struct Argument<A *> {
    static A *get(void *at) { return *static_cast<A **>(at); }
    static const Entry::Kind kind = Entry::POINTER;
};
template <typename A>
struct Argument<const A *> {
    static const A *get(void *at) { return *static_cast<const A **>(at); }
    static const Entry::Kind kind = Entry::CONST_POINTER;
};

template <typename F, F function>
struct Trampoline;
template <typename... A, void (*function)(A...)>
struct Trampoline<void (*)(A...), function> {
    static void call(void **arguments) {
        void **next = arguments;
        struct Call {  // braces evaluate from left to right
            Call(A... values) { function(values...); }
        } in_order{Argument<A>::get(*next++)...};
    }
    static Entry entry() { return {call, sizeof...(A), {(int)sizeof(A)...}, {Argument<A>::kind...}}; }
};

}  // namespace host

#define HOST_ENTRY(function) host::Trampoline<decltype(&function), &function>::entry()

// The window's constants, where they are set at run time.
static int host_constants[17];

extern "C" void gpuconv_host_constants(const int *values) {
    memcpy(host_constants, values, sizeof host_constants);
}

// Run a launch; return what went wrong, or "".
extern "C" const char *gpuconv_host_run(const host::Launch *given, int barriers) {
    using namespace host;
    const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE};
    struct sigaction mine = {}, before[3];
    mine.sa_sigaction = on_signal;
    mine.sa_flags = SA_SIGINFO | SA_NODEFER;
    for (int i = 0; i < 3; ++i) sigaction(numbers[i], &mine, &before[i]);
#ifdef __SANITIZE_ADDRESS__
    __asan_set_error_report_callback(on_asan_report);
#endif
    launch = *given;
    gridDim = dim3(launch.grid[0], launch.grid[1], launch.grid[2]);
    blockDim = dim3(launch.block[0], launch.block[1], launch.block[2]);
    message[0] = 0;
    barriers ? run_with_barriers() : run_without_barriers();
    for (int i = 0; i < 3; ++i) sigaction(numbers[i], &before[i], nullptr);
    return message;
}

// What the undefined-behaviour sanitizer calls, in place of its library, which would end the process.

namespace host {
struct Location {
    const char *file;
    unsigned line, column;
};
struct TypeMismatch {
    Location location;
    const void *type;
    unsigned char log_alignment, kind;
};
}  // namespace host

#define HOST_UNDEFINED(handler, what)                                                                          \
    extern "C" __attribute__((visibility("hidden"), no_sanitize("undefined", "address"))) void                 \
        __ubsan_handle_##handler(host::Location *at) {                                                         \
        HOST_FAIL("%s in %s:%u", what, at->file, at->line);                                                    \
    }

HOST_UNDEFINED(add_overflow_abort, "integer overflow")
HOST_UNDEFINED(sub_overflow_abort, "integer overflow")
HOST_UNDEFINED(mul_overflow_abort, "integer overflow")
HOST_UNDEFINED(negate_overflow_abort, "integer overflow")
HOST_UNDEFINED(divrem_overflow_abort, "division by zero or overflow")
HOST_UNDEFINED(shift_out_of_bounds_abort, "shift out of bounds")
HOST_UNDEFINED(out_of_bounds_abort, "index out of an array's bounds")
HOST_UNDEFINED(pointer_overflow_abort, "pointer overflow")
HOST_UNDEFINED(vla_bound_not_positive_abort, "array of no elements")
HOST_UNDEFINED(load_invalid_value_abort, "bool or enum of no valid value")
HOST_UNDEFINED(nonnull_arg_abort, "null where it must not be")
HOST_UNDEFINED(nonnull_return_v1_abort, "null where it must not be")
HOST_UNDEFINED(invalid_builtin_abort, "builtin with invalid argument")
HOST_UNDEFINED(builtin_unreachable, "unreachable code reached")
HOST_UNDEFINED(missing_return, "function ended without return")

extern "C" __attribute__((visibility("hidden"), no_sanitize("undefined", "address"))) void
__ubsan_handle_type_mismatch_v1_abort(host::TypeMismatch *at, size_t address) {
    const size_t alignment = (size_t)1 << at->log_alignment;
    if (address == 0) HOST_FAIL("null pointer followed in %s:%u", at->location.file, at->location.line);
    if (address % alignment)
        HOST_FAIL("misaligned access in %s:%u: address %#zx, alignment %zu", at->location.file,
                  at->location.line, address, alignment);
    HOST_FAIL("access beyond an object in %s:%u", at->location.file, at->location.line);
}
