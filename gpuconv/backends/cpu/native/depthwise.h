// A depthwise convolution, or one phase of an input gradient, which is one too. Axes are d, h, w; strides
// count elements, in the order n, c, d, h, w (w: c, d, h, w). The fields are read from here by compiled.py.
typedef struct {
  ptrdiff_t last;                               // 1: channels are neighbours in memory, else places are
  ptrdiff_t size[3], box[3], first[3];          // of x: sizes; of y: sizes; what tap 0 of place 0 reads
  ptrdiff_t kernel[3], stride[3], dilation[3];
  ptrdiff_t x[5], w[4], y[5], tap, place;       // strides; where the first tap and the first place are
} Depthwise;

// A tap of the axes across the block's: what it is in x, w and the sums, and the lanes it has places for.
typedef struct {
  ptrdiff_t x, w, sums, begin, end;
} AcrossTap;

// A block of outputs, and the channels (or vectors of them) for which it is computed one after another.
typedef struct {
  const AcrossTap *taps;
  ptrdiff_t number, count;                          // of taps; of lanes
  ptrdiff_t start, stride, dilation, size, kernel;  // along the block's axis
  ptrdiff_t pitch, apart, step;                     // steps there of x and w; of x between lanes
  ptrdiff_t many, x, w, b, y;                       // channels; steps to the next
  ptrdiff_t row, ahead;                             // of y along the block; what is read last of x
} ChannelBlock;
