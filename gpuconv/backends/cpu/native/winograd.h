// What one call of native/winograd.c works on. Strides count elements; axes are rows and columns.
typedef struct {
  ptrdiff_t channels, kernels, last;  // of one group; whether vectors run along them
  ptrdiff_t size[2], before[2];       // of x: sizes; places of padding before it
  ptrdiff_t out[2], tiles[2];         // of y: sizes, in places and in tiles
  ptrdiff_t x[4], y[4], w[4];         // strides: n, c, h, w; of w: k, c, i, j
  ptrdiff_t plane;                    // elements of V from one of the 36 matrices to the next
} Winograd;
