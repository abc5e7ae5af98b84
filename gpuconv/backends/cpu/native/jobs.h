// Calls of a kernel, handed to whichever thread is free without Python: its lock, asked for after every call,
// takes as long as many a call where two threads want it.
//
// The arguments of a call are a row of words, each an address or a number, all as wide as a pointer. A job is a
// row, or the rows begin[job] to begin[job + 1], one after the other.
#define WORDS 16
typedef ptrdiff_t Word;
typedef void Kernel(Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word);

// What threads do together. Each has a share of the jobs: the same one in every call, so that what it wrote in the
// last is in its core's cache for the next. Whose share is done takes of the others'. Nobody begins a job, nor reads
// anything else here, who came when none was left.
typedef struct {
  ptrdiff_t kernel, rows, words, begin, jobs;
  ptrdiff_t own, owned; // for each thread so many pairs, the place of an argument and its value: own memory
  ptrdiff_t threads;    // at most
  ptrdiff_t next;       // address: of each share its next job, LINE words apart
  ptrdiff_t joined;     // threads so far, beside the caller's
  ptrdiff_t inside;     // of these, now
  ptrdiff_t ended;      // whether there are no more jobs
} Together;
#define LINE 16 // words: a line of the cache, and the one that is read along with it

static inline Word share_begin(const Together *t, Word share) { return t->jobs * share / t->threads; }

// Do jobs, `most` of them and one at least, with the memory of a thread; first those of its share.
static void do_jobs(Together *t, Word thread, Word share, Word most) {
  const Word *rows = (const Word *)t->rows, *begin = (const Word *)t->begin;
  const Word words = t->words, owned = t->owned, *own = (const Word *)t->own + 2 * owned * thread;
  Kernel *kernel = (Kernel *)t->kernel;
  Word a[WORDS] = {0};
  for (Word tried = 0; tried < t->threads; ++tried, share = (share + 1) % t->threads) {
    Word *next = (Word *)t->next + share * LINE, end = share_begin(t, share + 1);
    for (;;) {
      Word job = __atomic_fetch_add(next, 1, __ATOMIC_SEQ_CST);
      if (job >= end) break;
      for (Word row = begin ? begin[job] : job, stop = begin ? begin[job + 1] : job + 1; row < stop; ++row) {
        for (Word i = 0; i < words; ++i) a[i] = rows[row * words + i];
        for (Word i = 0; i < owned; ++i) a[own[2 * i]] = own[2 * i + 1];
        // A kernel takes the first few, and ignores the others, as all calling conventions of C here allow.
        kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14],
               a[15]);
      }
      if (--most <= 0) return;
    }
  }
  __atomic_store_n(&t->ended, 1, __ATOMIC_SEQ_CST);
}

// Do jobs until none is left, having been counted as inside; `number` is the thread's, counting from 1. Afterwards
// the caller may be gone, and `t` with it.
static void help(Together *t, Word number) {
  Word thread = __atomic_add_fetch(&t->joined, 1, __ATOMIC_SEQ_CST);
  if (thread < t->threads) do_jobs(t, thread, number % t->threads, (Word)(~(size_t)0 >> 1));
  __atomic_fetch_sub(&t->inside, 1, __ATOMIC_SEQ_CST);
}

// For a thread that comes late, perhaps after the end: `t` is to be there still.
EXPORT void NAME(join_jobs)(Together *t, ptrdiff_t number) {
  __atomic_fetch_add(&t->inside, 1, __ATOMIC_SEQ_CST);
  help(t, number);
}

// Begin no more jobs.
EXPORT void NAME(end_jobs)(Together *t) {
  for (Word share = 0; share < t->threads; ++share)
    __atomic_exchange_n((Word *)t->next + share * LINE, t->jobs, __ATOMIC_SEQ_CST);
  __atomic_store_n(&t->ended, 1, __ATOMIC_SEQ_CST);
}

// A thread without work waits at its desk for a while: woken by the system, it would come 14 to 100 us later. On a
// desk is AWAY, WAITING, or the address of what the thread is to help with.
#define AWAY 0
#define WAITING 1

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#endif
}

// Wait at the desk of a thread, and help whoever asks, until for so many pauses nobody has, or one asks to go.
EXPORT void NAME(wait_at)(ptrdiff_t *desks, ptrdiff_t number, ptrdiff_t pauses) {
  ptrdiff_t *desk = desks + (number - 1) * LINE;
  __atomic_store_n(desk, WAITING, __ATOMIC_SEQ_CST);
  for (ptrdiff_t left = pauses;;) {
    ptrdiff_t found = __atomic_load_n(desk, __ATOMIC_SEQ_CST);
    if (found == AWAY) return;
    if (found != WAITING) {
      help((Together *)found, number);
      __atomic_store_n(desk, WAITING, __ATOMIC_SEQ_CST);
      left = pauses;
    } else if (left-- > 0) {
      relax();
    } else if (__atomic_compare_exchange_n(desk, &found, AWAY, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
      return;
    }
  }
}

// Write onto desks of those who wait: what they are to help with, or AWAY.
static void tell(ptrdiff_t *desks, ptrdiff_t count, ptrdiff_t most, ptrdiff_t what) {
  for (ptrdiff_t i = 0; i < count && most > 0; ++i) {
    ptrdiff_t found = WAITING;
    if (__atomic_load_n(desks + i * LINE, __ATOMIC_SEQ_CST) != WAITING) continue;
    if (what != AWAY) __atomic_fetch_add(&((Together *)what)->inside, 1, __ATOMIC_SEQ_CST);
    if (__atomic_compare_exchange_n(desks + i * LINE, &found, what, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
      --most;
    else if (what != AWAY)
      __atomic_fetch_sub(&((Together *)what)->inside, 1, __ATOMIC_SEQ_CST);
  }
}

// Send some of those who wait back to Python.
EXPORT void NAME(send_away)(ptrdiff_t *desks, ptrdiff_t count, ptrdiff_t most) { tell(desks, count, most, AWAY); }

// Do jobs, `most` of them, with the help of those who wait; when none is left, wait for them so many pauses.
EXPORT void NAME(run_jobs)(Together *t, ptrdiff_t most, ptrdiff_t *desks, ptrdiff_t count, ptrdiff_t pauses) {
  tell(desks, count, t->threads - 1 - __atomic_load_n(&t->joined, __ATOMIC_SEQ_CST), (ptrdiff_t)t);
  do_jobs(t, 0, 0, most);
  if (!__atomic_load_n(&t->ended, __ATOMIC_SEQ_CST)) return;
  while (pauses-- > 0 && __atomic_load_n(&t->inside, __ATOMIC_SEQ_CST) > 0) relax();
}
