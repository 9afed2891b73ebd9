// What the last layer needs beside products and the loss: its rows widened to be multiplied, and narrowed again.
#include "labels.cuh"

// Whether rows count is asked of their labels; where every row does, there are none to be asked.
#define ROW_PARAMETERS LABEL_PARAMETERS, int64 classes

// The rows of x, `step` elements apart, side by side in the type that is computed in, or in double; zeros for those that
// do not count, for times 0 not even infinity shall add anything.
template <class W> __device__ inline void copy_rows(int64 rows, int64 columns, const REAL* x, int64 step,
                                                    Labels<REAL> labels, bool is_divided, W* y) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        labels.start(row, is_divided);
        for (int64 j = threadIdx.x; j < columns; j += blockDim.x)
            y[row * columns + j] = labels.counts ? W(widen(x[row * step + j])) : W(0);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    widen_rows(int64 rows, int64 columns, const REAL* x, int64 step, ROW_PARAMETERS, Compute<REAL>* y) {
    copy_rows(rows, columns, x, step, LABELS, DIVISOR.value != 0, y);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    double_rows(int64 rows, int64 columns, const REAL* x, int64 step, ROW_PARAMETERS, double* y) {
    copy_rows(rows, columns, x, step, LABELS, DIVISOR.value != 0, y);
}

// The way back, with zeros for the rows that do not count.
extern "C" __global__ void __launch_bounds__(256, 2)
    narrow_rows(int64 rows, int64 columns, const Compute<REAL>* x, ROW_PARAMETERS, REAL* y, int64 step) {
    auto labels = LABELS;
    bool is_divided = DIVISOR.value != 0;
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        labels.start(row, is_divided);
        for (int64 j = threadIdx.x; j < columns; j += blockDim.x)
            y[row * step + j] = labels.counts ? narrow<REAL>(x[row * columns + j]) : narrow<REAL>(0);
    }
}

// Every row becomes the biases.
extern "C" __global__ void __launch_bounds__(256, 2)
    put_biases(int64 rows, int64 columns, const REAL* b, Compute<REAL>* y) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x)
        for (int64 j = threadIdx.x; j < columns; j += blockDim.x) y[row * columns + j] = widen(b[j]);
}

// Adds sums to a total, which the first ones start, and puts it where it is wanted, if it is already.
extern "C" __global__ void __launch_bounds__(256, 2) add_to_total(int64 size, const Compute<REAL>* sums, int64 is_first,
                                                                  double* total, REAL* y) {
    for (int64 j = blockIdx.x * int64(blockDim.x) + threadIdx.x; j < size; j += int64(gridDim.x) * blockDim.x) {
        total[j] = (is_first ? 0 : total[j]) + double(sums[j]);
        if (y) y[j] = narrow<REAL>(Compute<REAL>(total[j]));
    }
}

// A total of `columns` in each row, rounded.
extern "C" __global__ void __launch_bounds__(256, 2)
    narrow_total(int64 rows, int64 columns, const double* total, REAL* y, int64 step) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x)
        for (int64 j = threadIdx.x; j < columns; j += blockDim.x)
            y[row * step + j] = narrow<REAL>(Compute<REAL>(total[row * columns + j]));
}
