// Calls of a kernel, handed to whichever thread is free without Python: its lock, asked for after every call,
// takes as long as many a call where two threads want it.
//
// A call's arguments are a row of words, each an address or a number, all as wide as a pointer. A job is a row, or
// the rows begin[job] to begin[job + 1], one after the other.
#define WORDS 16
typedef ptrdiff_t Word;
typedef void Kernel(Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word);

// Do jobs, `most` of them, until none is left. All threads share `next`, the next job's number. `own` are `owned`
// pairs of words, the place of an argument and its value in this thread: its own memory.
EXPORT void NAME(run_jobs)(void *kernel, const ptrdiff_t *rows, ptrdiff_t words, const ptrdiff_t *begin, ptrdiff_t jobs,
                      ptrdiff_t most, ptrdiff_t *next, const ptrdiff_t *own, ptrdiff_t owned) {
  Word a[WORDS] = {0};
  while (most-- > 0) {
    ptrdiff_t job = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
    if (job >= jobs) return;
    for (ptrdiff_t row = begin ? begin[job] : job, end = begin ? begin[job + 1] : job + 1; row < end; ++row) {
      for (ptrdiff_t i = 0; i < words; ++i) a[i] = rows[row * words + i];
      for (ptrdiff_t i = 0; i < owned; ++i) a[own[2 * i]] = own[2 * i + 1];
      // A kernel takes the first few, and ignores the others, as all calling conventions of C here allow.
      ((Kernel *)kernel)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13],
                         a[14], a[15]);
    }
  }
}
