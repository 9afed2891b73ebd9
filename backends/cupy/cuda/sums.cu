// Sums over the rows of a batch, over labels, and over the columns of a matrix. The order of each sum is fixed, so that
// results are the same in each run.
#include "targets.cuh"

// The sum of the weights of the rows that count, times those of their labels, and the sum without these; a part of both
// for each block.
extern "C" __global__ void __launch_bounds__(256, 2)
    count_labels(int64 rows, int64 classes, const void* t, int64 kind, int64 is_index, const Compute<REAL>* weight,
                 int64 ignore, int64 is_ignoring, const Compute<REAL>* of_rows, double* parts) {
    double total[2] = {0, 0};
    for (int64 row = blockIdx.x * int64(blockDim.x) + threadIdx.x; row < rows; row += int64(gridDim.x) * blockDim.x) {
        double scale = of_rows ? double(of_rows[row]) : 1;
        int64 label = is_index ? class_index(t, int(kind), row) : 0;
        if ((is_ignoring && label == ignore) || scale == 0) continue;
        total[1] += scale;
        if (!weight || !is_index)
            total[0] += scale;
        else if (label >= 0 && label < classes)
            total[0] += scale * double(weight[label]);
    }
    Block{int(blockDim.x), int(threadIdx.x)}.sum(total);
    if (threadIdx.x) return;
    parts[blockIdx.x] = total[0];
    parts[gridDim.x + blockIdx.x] = total[1];
}

__device__ inline double sum_of(const double* parts, int64 count) {
    double total[1] = {0};
    for (int64 i = threadIdx.x; i < count; i += blockDim.x) total[0] += parts[i];
    Block{int(blockDim.x), int(threadIdx.x)}.sum(total);
    return total[0];
}

// Sums the parts. Weights are normalised first, because products of tiny weights would underflow: they are divided by
// the sum, and the remaining divisor of the losses is 1, or 0 where nothing counts. The second number is what the z loss
// is multiplied by before.
extern "C" __global__ void __launch_bounds__(256, 2)
    divisor_of_labels(const double* parts, int64 count, double* divisor, int64 classes, const Compute<REAL>* weight,
                      double z_loss, Compute<REAL>* shares) {
    double total = sum_of(parts, count), of_rows = sum_of(parts + count, count);
    if (weight)
        for (int64 j = threadIdx.x; j < classes; j += blockDim.x)
            shares[j] = total == 0 ? Compute<REAL>(0) : Compute<REAL>(double(weight[j]) / total);
    if (threadIdx.x) return;
    bool counts = total != 0 || (z_loss != 0 && of_rows != 0);
    divisor[0] = weight ? double(counts) : total;
    divisor[1] = !weight ? 1 : of_rows != 0 ? 1 / of_rows : 0;
}

// The loss, from the sums of the blocks.
extern "C" __global__ void __launch_bounds__(256, 2)
    loss_of_blocks(const double* sums, int64 count, double divisor, const double* found_divisor, Compute<REAL>* loss) {
    double total = sum_of(sums, count);
    double d = DIVISOR.value;
    if (threadIdx.x == 0) *loss = Compute<REAL>(d == 0 && total == total ? 0 : total / d);
}

// The sums of the columns of x, (rows, columns): blocks of 32 columns, 16 threads for each column. `parts` blocks share
// the rows; if there are several, they write their sums to `found`, (parts, columns).
extern "C" __global__ void __launch_bounds__(512, 1)
    column_sums(int64 rows, int64 columns, int64 parts, const REAL* x, double* found, REAL* sums) {
    Column group{int(blockDim.y), int(threadIdx.y), int(threadIdx.x)};
    int64 tiles = (columns + WARP - 1) / WARP;
    int64 column = blockIdx.x % tiles * WARP + threadIdx.x;
    int64 part = blockIdx.x / tiles;
    int64 length = (rows + parts - 1) / parts, stop = (part + 1) * length < rows ? (part + 1) * length : rows;
    double total[1] = {0};
    if (column < columns)
        for (int64 row = part * length + threadIdx.y; row < stop; row += blockDim.y)
            total[0] += double(widen(x[row * columns + column]));
    group.sum(total);
    if (threadIdx.y || column >= columns) return;
    if (parts > 1)
        found[part * columns + column] = total[0];
    else
        sums[column] = narrow<REAL>(Compute<REAL>(total[0]));
}

extern "C" __global__ void __launch_bounds__(256, 2)
    join_column_sums(int64 columns, int64 parts, const double* found, REAL* sums) {
    for (int64 j = blockIdx.x * int64(blockDim.x) + threadIdx.x; j < columns; j += int64(gridDim.x) * blockDim.x) {
        double total = 0;
        for (int64 part = 0; part < parts; part++) total += found[part * columns + j];
        sums[j] = narrow<REAL>(Compute<REAL>(total));
    }
}

// y = x, rounded to 16 bits.
extern "C" __global__ void __launch_bounds__(256, 2) narrow_all(int64 size, const Compute<REAL>* x, REAL* y) {
    for (int64 i = blockIdx.x * int64(blockDim.x) + threadIdx.x; i < size; i += int64(gridDim.x) * blockDim.x)
        y[i] = narrow<REAL>(x[i]);
}
