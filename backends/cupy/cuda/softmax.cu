#include "softmax.cuh"

ROW_KERNEL(softmax, Softmax<REAL>(x, y), const REAL* x, REAL* y)
