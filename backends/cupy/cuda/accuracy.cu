// The share of rows whose label is among the k largest logits.
#include "targets.cuh"

// The number of rows that are right and of those that count, for each block; `blockDim.x` threads for each row. NaN if a
// label names no class. The element j of row i is at (i / inner * classes + j) * inner + i % inner.
extern "C" __global__ void __launch_bounds__(256, 2)
    count_right_rows(int64 rows, int64 classes, int64 inner, int64 k, const REAL* x, const void* t, int64 kind,
                     int64 ignore, int64 is_ignoring, double* parts) {
    using A = Compute<REAL>;
    double totals[2] = {0, 0};
    for (int64 row = blockIdx.x * int64(blockDim.y) + threadIdx.y; row < rows; row += int64(gridDim.x) * blockDim.y) {
        int64 label = class_index(t, int(kind), row);
        if (is_ignoring && label == ignore) continue;
        bool is_bad = label < 0 || label >= classes;
        const REAL* first = x + row / inner * classes * inner + row % inner;
        A value = widen(first[is_bad ? 0 : label * inner]);
        int64 rank[1] = {0};  // the number of logits before that of the label; NaN is as good as all of them
        for (int64 j = threadIdx.x; j < classes; j += blockDim.x) {
            A other = widen(first[j * inner]);
            rank[0] += other != other ? classes : other > value || (other == value && j < label);
        }
        Lanes{int(blockDim.x), int(threadIdx.x)}.sum(rank);
        if (threadIdx.x == 0) {
            totals[0] += is_bad ? not_a_number<double>() : double(rank[0] < k);
            totals[1] += 1;
        }
    }
    Block block{int(blockDim.x * blockDim.y), int(threadIdx.y * blockDim.x + threadIdx.x)};
    block.sum(totals);
    if (block.rank == 0)
        for (int i = 0; i < 2; i++) parts[2 * blockIdx.x + i] = totals[i];
}

extern "C" __global__ void __launch_bounds__(256, 2)
    accuracy_of_blocks(const double* parts, int64 count, double* accuracy) {
    double totals[2] = {0, 0};
    for (int64 i = threadIdx.x; i < count; i += blockDim.x)
        for (int n = 0; n < 2; n++) totals[n] += parts[2 * i + n];
    Block{int(blockDim.x), int(threadIdx.x)}.sum(totals);
    if (threadIdx.x == 0) *accuracy = totals[1] == 0 ? 0 : totals[0] / totals[1];
}
