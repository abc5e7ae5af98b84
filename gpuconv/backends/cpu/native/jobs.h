// Calls of a kernel, handed to whichever thread is free without Python: its lock, asked for after every call,
// takes as long as many a call where two threads want it.
//
// The arguments of a call are a row of words, each an address or a number, all as wide as a pointer. A job is a
// row, or the rows begin[job] to begin[job + 1], one after the other.
#define WORDS 16
typedef ptrdiff_t Word;
typedef void Kernel(Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word);

// What threads do together. Nobody begins a job, nor reads anything else here, who came when none was left.
typedef struct {
  ptrdiff_t kernel, rows, words, begin, jobs;
  ptrdiff_t own, owned; // for each thread so many pairs, the place of an argument and its value: own memory
  ptrdiff_t threads;    // at most
  ptrdiff_t next;       // job
  ptrdiff_t joined;     // threads so far, beside the caller's
  ptrdiff_t inside;     // of these, now
} Together;

static void do_jobs(Together *t, ptrdiff_t thread, ptrdiff_t most) {
  const Together given = *t; // the counters in it change, and with them the cache's line
  const Word *rows = (const Word *)given.rows, *begin = (const Word *)given.begin;
  const Word *own = (const Word *)given.own + 2 * given.owned * thread;
  Word a[WORDS] = {0};
  while (most-- > 0) {
    Word job = __atomic_fetch_add(&t->next, 1, __ATOMIC_SEQ_CST);
    if (job >= given.jobs) return;
    for (Word row = begin ? begin[job] : job, end = begin ? begin[job + 1] : job + 1; row < end; ++row) {
      for (Word i = 0; i < given.words; ++i) a[i] = rows[row * given.words + i];
      for (Word i = 0; i < given.owned; ++i) a[own[2 * i]] = own[2 * i + 1];
      // A kernel takes the first few, and ignores the others, as all calling conventions of C here allow.
      ((Kernel *)given.kernel)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12],
                               a[13], a[14], a[15]);
    }
  }
}

// Do jobs until none is left, having been counted as inside. Afterwards the caller may be gone, and `t` with it.
static void help(Together *t) {
  ptrdiff_t thread = __atomic_add_fetch(&t->joined, 1, __ATOMIC_SEQ_CST);
  if (thread < t->threads) do_jobs(t, thread, t->jobs);
  __atomic_fetch_sub(&t->inside, 1, __ATOMIC_SEQ_CST);
}

// For a thread that comes late, perhaps after the end: `t` is to be there still.
EXPORT void NAME(join_jobs)(Together *t) {
  __atomic_fetch_add(&t->inside, 1, __ATOMIC_SEQ_CST);
  help(t);
}

// Begin no more jobs.
EXPORT void NAME(end_jobs)(Together *t) { __atomic_exchange_n(&t->next, t->jobs, __ATOMIC_SEQ_CST); }

// A thread without work waits at its desk for a while: woken by the system, it would come 14 to 100 us later. On a
// desk is AWAY, WAITING, or the address of what the thread is to help with.
#define AWAY 0
#define WAITING 1
#define DESK 16 // words from one to the next: a line of the cache of its own, and the line read along with it

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#endif
}

// Wait, and help whoever asks, until for so many pauses nobody has, or one asks to go.
EXPORT void NAME(wait_at)(ptrdiff_t *desk, ptrdiff_t pauses) {
  __atomic_store_n(desk, WAITING, __ATOMIC_SEQ_CST);
  for (ptrdiff_t left = pauses;;) {
    ptrdiff_t found = __atomic_load_n(desk, __ATOMIC_SEQ_CST);
    if (found == AWAY) return;
    if (found != WAITING) {
      help((Together *)found);
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
    if (__atomic_load_n(desks + i * DESK, __ATOMIC_SEQ_CST) != WAITING) continue;
    if (what != AWAY) __atomic_fetch_add(&((Together *)what)->inside, 1, __ATOMIC_SEQ_CST);
    if (__atomic_compare_exchange_n(desks + i * DESK, &found, what, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
      --most;
    else if (what != AWAY)
      __atomic_fetch_sub(&((Together *)what)->inside, 1, __ATOMIC_SEQ_CST);
  }
}

// Send some of those who wait back to Python.
EXPORT void NAME(send_away)(ptrdiff_t *desks, ptrdiff_t count, ptrdiff_t most) { tell(desks, count, most, AWAY); }

// Do jobs, `most` of them, with the help of those who wait; when none is left, wait for them so many pauses.
EXPORT void NAME(run_jobs)(Together *t, ptrdiff_t most, ptrdiff_t *desks, ptrdiff_t count, ptrdiff_t pauses) {
  if (__atomic_load_n(&t->next, __ATOMIC_SEQ_CST) == 0) tell(desks, count, t->threads - 1, (ptrdiff_t)t);
  do_jobs(t, 0, most);
  if (__atomic_load_n(&t->next, __ATOMIC_SEQ_CST) < t->jobs) return;
  while (pauses-- > 0 && __atomic_load_n(&t->inside, __ATOMIC_SEQ_CST) > 0) relax();
}
