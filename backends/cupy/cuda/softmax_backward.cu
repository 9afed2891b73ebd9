#include "softmax_backward.cuh"

ROW_KERNEL(softmax_backward, SoftmaxBackward<REAL>(dy, y, dx), const REAL* dy, const REAL* y, REAL* dx)
