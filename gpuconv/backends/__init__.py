"""The same handful of primitives for each kind of array; `dispatch` picks by the arrays' type."""
