// What one call works on: a box of output places, of some images and groups. Axes are d, h, w; strides count
// elements, in the order n, c, d, h, w. The fields are read from here by compiled.py, and all of one type.
typedef struct {
  ptrdiff_t images, groups, channels, kernels, taps;  // channels and kernels of one group
  ptrdiff_t size[3], first[3], stride[3];             // of x: sizes; what the box's first tap reads; steps
  ptrdiff_t phases, extent[3], plane;                 // of the flat image: see flat.c
  ptrdiff_t box[3], places;                           // output places of the box, and their flat numbers
  ptrdiff_t x[5], y[5];                               // strides
  ptrdiff_t reads[3];                                 // how far apart outer.c's output places read
  ptrdiff_t x_in_place, y_in_place;                   // 1 where an array already lies as its flat copy would
} Convolution;
