// Whether threads meet in memory with no barrier between them: what compute-sanitizer's racecheck looks for, in global
// memory and between blocks, too. It doesn't need two orders that differ in what they write.
//
// g++ -fsanitize=thread calls __tsan_... before each access; these take the place of its library. Of each byte that lies
// in shared memory or in a kernel's arrays there is a Seen. Barriers of a block divide a launch into phases, counted
// through all blocks: what one thread writes, another of its block may touch in a later phase, and one of another block
// not at all.

#define HOST_OWN __attribute__((no_sanitize("thread", "undefined"), visibility("hidden")))

namespace host {

const unsigned short SEVERAL = 0xFFFF;  // threads, in place of one

struct Seen {
    unsigned wrote, read;           // in which phase last; 0: never
    unsigned short writer, reader;  // of those phases
    bool read_elsewhere;            // by another block than the reader's
    bool arriving;                  // by a copy that isn't waited for yet
};

static_assert(sizeof(Seen) == 16, "as the caller makes them");

static Seen seen_of_shared[MOST_SHARED + GUARD];
static unsigned phase, first_phase;  // now, and of this block

HOST_OWN static void begin_phase(bool of_block) {
    ++phase;
    if (!of_block) return;
    first_phase = phase;
    memset(seen_of_shared, 0, sizeof seen_of_shared);
}

HOST_OWN static void races_with(const char *does, const char *did, unsigned other, bool same_block,
                                size_t byte, int array) {
    char where[40], who[40] = "another block";
    snprintf(where, sizeof where, array < 0 ? "shared memory" : "array %d", array);
    if (same_block) snprintf(who, sizeof who, other == SEVERAL ? "other threads" : "thread %u", other);
    HOST_FAIL("%s byte %zu of %s, which %s %s, with no barrier between", does, byte, where, who, did);
}

HOST_OWN static void touch(Seen &seen, bool write, size_t byte, int array) {
    const unsigned short me = (unsigned short)running->thread;
    const char *const does = write ? "writes" : "reads";
    if (seen.arriving) HOST_FAIL("%s byte %zu of what is still being copied to shared memory", does, byte);
    if (seen.wrote && (seen.wrote < first_phase || (seen.wrote == phase && seen.writer != me)))
        races_with(does, "wrote", seen.writer, seen.wrote >= first_phase, byte, array);
    const bool read_before = seen.read && seen.read < first_phase, together = seen.read == phase;
    if (write) {
        if (read_before || seen.read_elsewhere || (together && seen.reader != me))
            races_with(does, "read", seen.reader, !read_before && !seen.read_elsewhere, byte, array);
        seen.wrote = phase;
        seen.writer = me;
    } else {
        seen.read_elsewhere |= read_before;
        seen.reader = together && seen.reader != me ? SEVERAL : me;
        seen.read = phase;
    }
}

// Return the first of these bytes' Seen, or null where they lie in neither, as what is a thread's own.
HOST_OWN static Seen *find(const void *at, size_t &byte, int &array) {
    byte = (const unsigned char *)at - shared, array = -1;
    if (byte < launch.shared_size) return seen_of_shared + byte;
    for (array = 0; array < (int)launch.array_count; ++array) {
        byte = (size_t)at - launch.arrays[array].start;
        if (byte < launch.arrays[array].size) return launch.arrays[array].seen + byte;
    }
    return nullptr;
}

HOST_OWN static void touch(const void *at, size_t size, bool write) {
    size_t byte;
    int array;
    if (running == &scheduler) return;
    if (Seen *seen = find(at, byte, array))
        for (size_t i = 0; i < size; ++i) touch(seen[i], write, byte + i, array);
}

// Of a copy, when it is asked for and when it is done.
HOST_OWN static void touch_copy(const Copy &copy, bool arriving) {
    size_t byte;
    int array;
    if (copy.from) touch(copy.from, copy.size, false);
    Seen *const seen = find(copy.to, byte, array);
    for (int i = 0; i < copy.size; ++i) {
        if (!arriving) seen[i].arriving = false;
        touch(seen[i], true, byte + i, array);
        seen[i].arriving = arriving;
    }
}

}  // namespace host

#define HOST_ACCESS(name, size, write)                                                                          \
    extern "C" HOST_OWN void __tsan_##name(void *at) { host::touch(at, size, write); }
HOST_ACCESS(read1, 1, false)
HOST_ACCESS(read2, 2, false)
HOST_ACCESS(read4, 4, false)
HOST_ACCESS(read8, 8, false)
HOST_ACCESS(read16, 16, false)
HOST_ACCESS(write1, 1, true)
HOST_ACCESS(write2, 2, true)
HOST_ACCESS(write4, 4, true)
HOST_ACCESS(write8, 8, true)
HOST_ACCESS(write16, 16, true)
HOST_ACCESS(unaligned_read2, 2, false)
HOST_ACCESS(unaligned_read4, 4, false)
HOST_ACCESS(unaligned_read8, 8, false)
HOST_ACCESS(unaligned_read16, 16, false)
HOST_ACCESS(unaligned_write2, 2, true)
HOST_ACCESS(unaligned_write4, 4, true)
HOST_ACCESS(unaligned_write8, 8, true)
HOST_ACCESS(unaligned_write16, 16, true)
extern "C" HOST_OWN void __tsan_read_range(void *at, size_t size) { host::touch(at, size, false); }
extern "C" HOST_OWN void __tsan_write_range(void *at, size_t size) { host::touch(at, size, true); }
extern "C" HOST_OWN void __tsan_func_entry(void *) {}
extern "C" HOST_OWN void __tsan_func_exit() {}
extern "C" HOST_OWN void __tsan_init() {}
