// What one call of a pooling works on: some images and channels. Axes are d, h, w; strides count elements, in
// the order n, c, d, h, w; x and y are dx and dy where gradients are meant. Fields: see compiled.py.
//
// Where windows share out the image (adaptive pooling), the stride is 0: the kernel is the image, its taps are
// its places, and window o has those from floor(o * size / out) on, before ceil((o + 1) * size / out).
typedef struct {
  ptrdiff_t images, channels, size[3], out[3];         // places of x and of y
  ptrdiff_t kernel[3], stride[3], dilation[3], before[3];
  ptrdiff_t x[5], y[5], mask[5], mask_bytes;           // strides; bytes of a mask's element, 0 without one
  ptrdiff_t way;                                       // along what vectors lie: a Way
} Pooling;

// Vectors of channels; of outputs (or, in a gradient, of places) along w; of a window's places along w;
// of whole planes' places; of x's places along w. Without vectors: from or to the places that masks name.
enum Way { BY_CHANNELS, BY_ROWS, BY_WINDOWS, BY_PLANES, BY_COLUMNS, BY_PLACES };

// What is taken of a window.
enum { MAX, MAX_AND_MASK, MEAN };

typedef struct {
  ptrdiff_t begin, end;
} Range;

// The part of `size` places that piece i of n has; places that a cut goes through are in both pieces.
static inline Range piece(ptrdiff_t size, ptrdiff_t n, ptrdiff_t i) {
  return (Range){i * size / n, ((i + 1) * size + n - 1) / n};
}

// The taps that window o has inside of x, along an axis.
static inline Range taps_inside(const Pooling *s, int axis, ptrdiff_t o) {
  if (!s->stride[axis]) return piece(s->size[axis], s->out[axis], o);
  ptrdiff_t first = o * s->stride[axis] - s->before[axis], step = s->dilation[axis];
  ptrdiff_t last = first + (s->kernel[axis] - 1) * step;
  Range taps = {0, s->kernel[axis]};
  if (first < 0) taps.begin = (-first + step - 1) / step;
  if (last >= s->size[axis]) taps.end = (s->size[axis] - 1 - first) / step + 1;
  return taps;
}

// The windows whose span has place i, along an axis.
static inline Range windows_over(const Pooling *s, int axis, ptrdiff_t i) {
  if (!s->stride[axis]) return piece(s->out[axis], s->size[axis], i);
  ptrdiff_t u = i + s->before[axis], span = (s->kernel[axis] - 1) * s->dilation[axis] + 1;
  Range windows = {u < span ? 0 : (u - span) / s->stride[axis] + 1, u / s->stride[axis] + 1};
  if (windows.end > s->out[axis]) windows.end = s->out[axis];
  return windows;
}

// The place of x that tap j of window o reads, along an axis.
static inline ptrdiff_t place(const Pooling *s, int axis, ptrdiff_t o, ptrdiff_t j) {
  return o * s->stride[axis] - s->before[axis] + j * s->dilation[axis];
}

// The tap with which window o reads place i, along an axis; -1 where it has none there.
static inline ptrdiff_t tap_at(const Pooling *s, int axis, ptrdiff_t o, ptrdiff_t i) {
  ptrdiff_t way = i - place(s, axis, o, 0), step = s->dilation[axis];
  return step == 1 ? way : way % step ? -1 : way / step;
}

static inline ptrdiff_t span_of(const Pooling *s, int axis) {
  return (s->kernel[axis] - 1) * s->dilation[axis] + 1;
}

// What a mean's sum is multiplied by; `shares` are each axis's part, 1 / places, one axis after the other.
static inline double row_share(const Pooling *s, const double *shares, ptrdiff_t d, ptrdiff_t h) {
  return shares[d] * shares[s->out[0] + h];
}

static inline double share_of(const Pooling *s, const double *shares, ptrdiff_t d, ptrdiff_t h, ptrdiff_t w) {
  return row_share(s, shares, d, h) * shares[s->out[0] + s->out[1] + w];
}
