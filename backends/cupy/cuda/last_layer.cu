// The last layer apart from its products and its loss: rows copied to a wider type for products, and rounded back.
#include "targets.cuh"

// The labels decide whether a row counts. Where every row counts, `t` is null.
#define ROW_PARAMETERS TARGET_PARAMETERS, int64 classes

// Copies the rows of x, `step` elements apart, to contiguous rows of the compute type or of double. Rows that do not
// count become zeros, because 0 * inf is NaN.
template <class W> __device__ inline void copy_rows(int64 rows, int64 columns, const REAL* x, int64 step,
                                                    Targets<REAL> targets, bool is_divided, W* y) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        targets.start(row, is_divided);
        for (int64 j = threadIdx.x; j < columns; j += blockDim.x)
            y[row * columns + j] = targets.counts ? W(widen(x[row * step + j])) : W(0);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    widen_rows(int64 rows, int64 columns, const REAL* x, int64 step, ROW_PARAMETERS, Compute<REAL>* y) {
    copy_rows(rows, columns, x, step, TARGETS, DIVISOR.value != 0, y);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    double_rows(int64 rows, int64 columns, const REAL* x, int64 step, ROW_PARAMETERS, double* y) {
    copy_rows(rows, columns, x, step, TARGETS, DIVISOR.value != 0, y);
}

// Rounds rows back, with zeros for rows that do not count.
extern "C" __global__ void __launch_bounds__(256, 2)
    narrow_rows(int64 rows, int64 columns, const Compute<REAL>* x, ROW_PARAMETERS, REAL* y, int64 step) {
    auto targets = TARGETS;
    bool is_divided = DIVISOR.value != 0;
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        targets.start(row, is_divided);
        for (int64 j = threadIdx.x; j < columns; j += blockDim.x)
            y[row * step + j] = targets.counts ? narrow<REAL>(x[row * columns + j]) : narrow<REAL>(0);
    }
}

// Caps the logits, z = s u with u = tanh(z / s). Writes u to `tanhs` unless that is null.
extern "C" __global__ void __launch_bounds__(256, 2)
    cap(int64 rows, int64 columns, Compute<REAL>* z, double softcap, Compute<REAL>* tanhs) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x)
        for (int64 j = row * columns + threadIdx.x; j < (row + 1) * columns; j += blockDim.x) {
            Compute<REAL> u = tanh(z[j] / Compute<REAL>(softcap));
            z[j] = u * Compute<REAL>(softcap);
            if (tanhs) tanhs[j] = u;
        }
}

// The gradient of logits before they are capped, from that of capped ones; 0 stays 0, even where u is NaN.
extern "C" __global__ void __launch_bounds__(256, 2)
    uncap(int64 rows, int64 columns, const Compute<REAL>* tanhs, Compute<REAL>* slopes) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x)
        for (int64 j = row * columns + threadIdx.x; j < (row + 1) * columns; j += blockDim.x)
            if (slopes[j] != 0) slopes[j] *= (1 - tanhs[j]) * (1 + tanhs[j]);
}

// Writes the biases to every row.
extern "C" __global__ void __launch_bounds__(256, 2)
    put_biases(int64 rows, int64 columns, const REAL* b, Compute<REAL>* y) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x)
        for (int64 j = threadIdx.x; j < columns; j += blockDim.x) y[row * columns + j] = widen(b[j]);
}

// Adds the sums of a chunk to the total, which the first chunk starts. Writes the rounded total to y unless y is null.
extern "C" __global__ void __launch_bounds__(256, 2) add_to_total(int64 size, const Compute<REAL>* sums, int64 is_first,
                                                                  double* total, REAL* y) {
    for (int64 j = blockIdx.x * int64(blockDim.x) + threadIdx.x; j < size; j += int64(gridDim.x) * blockDim.x) {
        total[j] = (is_first ? 0 : total[j]) + double(sums[j]);
        if (y) y[j] = narrow<REAL>(Compute<REAL>(total[j]));
    }
}

// Rounds the total, of `columns` elements in each row.
extern "C" __global__ void __launch_bounds__(256, 2)
    narrow_total(int64 rows, int64 columns, const double* total, REAL* y, int64 step) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x)
        for (int64 j = threadIdx.x; j < columns; j += blockDim.x)
            y[row * step + j] = narrow<REAL>(Compute<REAL>(total[row * columns + j]));
}
