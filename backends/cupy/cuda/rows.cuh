// Kernels over rows of classes: the threads of a row, the elements of each thread, and the sums over a row.
//
// An operation, such as `Softmax` in softmax.cuh, defines the computation on a row. Its members are
//
//     Real, Item             the type of its arrays, and the state of one element in registers
//     TOP, SUMS              whether it needs the largest number of a row, and its number of sums
//     load, padding          items from memory, and the item that changes nothing
//     number(item)           the number to take the largest of
//     add(sums, item, j)     adds class j to the sums, which are relative to `top`; may change the item
//     rescale(sums, top)     converts sums to another `top`, the largest number so far
//     start(row)             called before the first element of a row
//     know(sums)             called when the sums are complete
//     store                  results to memory
//     finish(row, first)     called after the last element; `first` is true for one thread of the row
//
// The threads that share a row are a `Lanes`, a `Block` or a `Column`; they take its elements in turn, W at a time.
// The order of sums depends on the shape alone, so that results are the same in each run.
#pragma once
#include "real.cuh"

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;

// The larger of two numbers; of NaN and a number, the number.
__device__ inline float larger(float a, float b) { return fmaxf(a, b); }
__device__ inline double larger(double a, double b) { return fmax(a, b); }

// Neighbouring threads of a warp that share a row; `size` is a power of 2. All warps have 32 threads here.
struct Lanes {
    int size, rank;

    template <class A> __device__ A largest(A x) const {
        for (int step = size / 2; step; step /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, step));
        return x;
    }
    template <int COUNT, class A> __device__ void sum(A (&x)[COUNT]) const {
        for (int step = size / 2; step; step /= 2)
            for (int i = 0; i < COUNT; i++) x[i] += __shfl_xor_sync(ALL_LANES, x[i], step);
    }
};

// All threads of a block, for one row.
struct Block {
    int size, rank;

    template <class A> __device__ A largest(A x) const {
        __shared__ A part[WARP];
        x = Lanes{WARP, rank % WARP}.largest(x);
        if (rank % WARP == 0) part[rank / WARP] = x;
        __syncthreads();
        for (int i = 0; i < size / WARP; i++) x = larger(x, part[i]);
        __syncthreads();  // before `part` is overwritten
        return x;
    }
    template <int COUNT, class A> __device__ void sum(A (&x)[COUNT]) const {
        __shared__ A part[COUNT][WARP];
        Lanes{WARP, rank % WARP}.sum(x);
        if (rank % WARP == 0)
            for (int i = 0; i < COUNT; i++) part[i][rank / WARP] = x[i];
        __syncthreads();
        for (int i = 0; i < COUNT; i++) {
            x[i] = 0;
            for (int j = 0; j < size / WARP; j++) x[i] += part[i][j];
        }
        __syncthreads();
    }
};

// The threads of one column of a block of 32 columns, for a row whose elements are not contiguous: neighbouring threads
// work on neighbouring rows.
struct Column {
    int size, rank, column;  // a size of at most MOST

    static constexpr int MOST = 16;

    template <class A> __device__ A largest(A x) const {
        __shared__ A part[MOST][WARP];
        part[rank][column] = x;
        __syncthreads();
        for (int i = 0; i < size; i++) x = larger(x, part[i][column]);
        __syncthreads();
        return x;
    }
    template <int COUNT, class A> __device__ void sum(A (&x)[COUNT]) const {
        __shared__ A part[COUNT][MOST][WARP];
        for (int i = 0; i < COUNT; i++) part[i][rank][column] = x[i];
        __syncthreads();
        for (int i = 0; i < COUNT; i++) {
            x[i] = 0;
            for (int j = 0; j < size; j++) x[i] += part[i][j][column];
        }
        __syncthreads();
    }
};

// The elements of a row from `begin` to `stop`; element j is at `at + j * stride` in memory.
struct Span {
    int64 at, stride, begin, stop;
};

// The size of the array of sums: arrays of 0 elements do not exist.
template <class Op> constexpr int SUMS = Op::SUMS ? Op::SUMS : 1;

template <int N, int W, class Op, class Group>
__device__ inline void load(const Op& op, typename Op::Item (&items)[N], Group group, Span span, int64 first) {
    static_assert(N % W == 0, "a thread has whole vectors");
#pragma unroll
    for (int k = 0; k < N; k += W) {
        int64 j = first + (int64(k / W) * group.size + group.rank) * W;
        if (j < span.stop)
            op.template load<W>(items + k, span.at + j * span.stride, j);
        else
            for (int i = 0; i < W; i++) items[k + i] = Op::padding();
    }
}

template <int N, int W, class Op, class Group, class A>
__device__ inline void add(Op& op, A (&sums)[SUMS<Op>], typename Op::Item (&items)[N], Group group,
                           int64 first) {
#pragma unroll
    for (int k = 0; k < N; k += W)
#pragma unroll
        for (int i = 0; i < W; i++)
            op.add(sums, items[k + i], first + (int64(k / W) * group.size + group.rank) * W + i);
}

template <int N, int W, class Op, class Group>
__device__ inline void store(const Op& op, typename Op::Item (&items)[N], Group group, Span span, int64 first) {
#pragma unroll
    for (int k = 0; k < N; k += W) {
        int64 j = first + (int64(k / W) * group.size + group.rank) * W;
        if (j < span.stop) op.template store<W>(items + k, span.at + j * span.stride, j);
    }
}

template <int N, class Op>
__device__ inline Compute<typename Op::Real> largest_of(const Op& op, const typename Op::Item (&items)[N]) {
    auto top = -infinity<Compute<typename Op::Real>>();
#pragma unroll
    for (int k = 0; k < N; k++) top = larger(top, op.number(items[k]));
    return top;
}

// Computes a row that fits into the registers of the group, and reads it once.
template <int N, int W, class Op, class Group>
__device__ inline void in_registers(Op& op, Group group, int64 row, bool live, int64 classes) {
    typename Op::Item items[N];
    Compute<typename Op::Real> sums[SUMS<Op>] = {};
    Span span{row * classes, 1, 0, live ? classes : 0};
    if (live) op.start(row);
    load<N, W>(op, items, group, span, 0);
    if (Op::TOP) op.top = group.largest(largest_of(op, items));
    add<N, W>(op, sums, items, group, 0);
    if (Op::SUMS) group.sum(sums);
    op.know(sums);
    store<N, W>(op, items, group, span, 0);
    if (live) op.finish(row, group.rank == 0);
}

// The sums over the elements of this thread in a span of any length, and the largest of them. The sums are double, and
// relative to the largest number so far: the online softmax of Milakov and Gimelshein, 2018.
template <int N, int W, class Op, class Group>
__device__ inline void gather(Op& op, double (&sums)[SUMS<Op>], Group group, Span span) {
    op.top = -infinity<Compute<typename Op::Real>>();
    for (int64 first = span.begin; first < span.stop; first += int64(N) * group.size) {
        typename Op::Item items[N];
        Compute<typename Op::Real> part[SUMS<Op>] = {};
        load<N, W>(op, items, group, span, first);
        if (Op::TOP) op.rescale(sums, larger(op.top, largest_of(op, items)));
        add<N, W>(op, part, items, group, first);
        for (int i = 0; i < Op::SUMS; i++) sums[i] += part[i];
    }
}

// Reads a span again, from its end, which the caches still hold, to its start, and writes the results.
template <int N, int W, class Op, class Group> __device__ inline void write_span(Op& op, Group group, Span span) {
    int64 step = int64(N) * group.size, first = span.begin;
    while (first + step < span.stop) first += step;
    for (; first >= span.begin; first -= step) {  // no element is read if there is none
        typename Op::Item items[N];
        Compute<typename Op::Real> unused[SUMS<Op>] = {};
        load<N, W>(op, items, group, span, first);
        add<N, W>(op, unused, items, group, first);  // `add` changes the items
        store<N, W>(op, items, group, span, first);
    }
}

// Computes a row of any length, and reads it twice.
template <int N, int W, class Op, class Group>
__device__ inline void twice(Op& op, Group group, int64 row, bool live, Span span) {
    double sums[SUMS<Op>] = {};
    if (live) op.start(row);
    if (Op::TOP || Op::SUMS) gather<N, W>(op, sums, group, span);
    if (Op::TOP) op.rescale(sums, group.largest(op.top));
    if (Op::SUMS) group.sum(sums);
    op.know(sums);
    if (Op::WRITES && live) write_span<N, W>(op, group, span);
    if (live) op.finish(row, group.rank == 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// The rows of a block
// ---------------------------------------------------------------------------------------------------------------------

// Several rows in a block, `size` lanes for each. All lanes of a warp execute the loop equally often, as shuffles need.
template <int N, int W, class Op>
__device__ inline void lanes(Op op, int64 rows, int64 classes, int size) {
    Lanes group{size, int(threadIdx.x) % size};
    int together = blockDim.x / size;
    for (int64 first = blockIdx.x * int64(together); first < rows; first += int64(gridDim.x) * together) {
        int64 row = first + threadIdx.x / size;
        in_registers<N, W>(op, group, row, row < rows, classes);
    }
    op.end();
}

// One row after another in a block.
template <int N, int W, class Op> __device__ inline void blocks(Op op, int64 rows, int64 classes) {
    Block group{int(blockDim.x), int(threadIdx.x)};
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x)
        in_registers<N, W>(op, group, row, true, classes);
    op.end();
}

template <int N, int W, class Op> __device__ inline void long_rows(Op op, int64 rows, int64 classes) {
    Block group{int(blockDim.x), int(threadIdx.x)};
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x)
        twice<N, W>(op, group, row, true, Span{row * classes, 1, 0, classes});
    op.end();
}

// Rows along an axis that is not the last: 32 neighbouring rows in a block, `inner` elements from class to class.
template <int N, class Op> __device__ inline void columns(Op op, int64 rows, int64 classes, int64 inner) {
    Column group{int(blockDim.y), int(threadIdx.y), int(threadIdx.x)};
    for (int64 first = blockIdx.x * int64(WARP); first < rows; first += int64(gridDim.x) * WARP) {
        int64 row = first + threadIdx.x;
        bool live = row < rows;
        int64 at = live ? row / inner * classes * inner + row % inner : 0;
        twice<N, 1>(op, group, row, live, Span{at, inner, 0, live ? classes : 0});
    }
    op.end();
}

// Few and very long rows, each shared by `parts` blocks. The first kernel writes the largest number and the
// sums of each part to `found`, which the second kernel reads. The length of a part is a multiple of the elements that a
// block takes at a time, so that parts do not overlap.
__device__ inline Span part_of_row(int64 row, int64 classes, int parts, int part, int64 step) {
    int64 length = (classes + parts * step - 1) / (parts * step) * step, begin = part * length;
    return Span{row * classes, 1, begin < classes ? begin : classes, begin + length < classes ? begin + length : classes};
}

template <int N, int W, class Op>
__device__ inline void gather_parts(Op op, int64 classes, int parts, double* found) {
    Block group{int(blockDim.x), int(threadIdx.x)};
    int64 row = blockIdx.x / parts;
    double sums[SUMS<Op>] = {};
    op.start(row);
    gather<N, W>(op, sums, group, part_of_row(row, classes, parts, blockIdx.x % parts, int64(N) * group.size));
    if (Op::TOP) op.rescale(sums, group.largest(op.top));
    group.sum(sums);
    if (group.rank == 0) {
        found += int64(blockIdx.x) * (SUMS<Op> + 1);
        found[SUMS<Op>] = op.top;
        for (int i = 0; i < Op::SUMS; i++) found[i] = sums[i];
    }
}

template <int N, int W, class Op>
__device__ inline void join_parts(Op op, int64 classes, int parts, const double* found) {
    Block group{int(blockDim.x), int(threadIdx.x)};
    int64 row = blockIdx.x / parts;
    int part = blockIdx.x % parts;
    double total[SUMS<Op>] = {};
    op.start(row);
    found += row * parts * (SUMS<Op> + 1);
    auto top = -infinity<Compute<typename Op::Real>>();
    for (int i = 0; i < parts; i++) top = larger(top, Compute<typename Op::Real>(found[i * (SUMS<Op> + 1) + SUMS<Op>]));
    for (int i = 0; i < parts; i++) {
        double sums[SUMS<Op>];
        for (int k = 0; k < Op::SUMS; k++) sums[k] = found[i * (SUMS<Op> + 1) + k];
        op.top = found[i * (SUMS<Op> + 1) + SUMS<Op>];
        if (Op::TOP) op.rescale(sums, top);
        for (int k = 0; k < Op::SUMS; k++) total[k] += sums[k];
    }
    op.know(total);
    Span span = part_of_row(row, classes, parts, part, int64(N) * group.size);
    if (Op::WRITES) write_span<N, W>(op, group, span);
    op.finish(row, group.rank == 0 && part == 0);
    op.end();
}

// The defaults of every operation.
template <class T> struct Operation {
    using Real = T;
    static constexpr bool TOP = false, WRITES = true;
    Compute<T> top;

    __device__ Operation() : top(0) {}
    template <class Item> __device__ Compute<T> number(const Item&) const { return 0; }
    template <class A> __device__ void rescale(A*, Compute<T>) {}
    __device__ void start(int64) {}
    template <class A> __device__ void know(const A*) {}
    __device__ void finish(int64, bool) {}
    __device__ void end() {}
};

// Defines the kernel of an operation, an expression of the parameters of the kernel. The macros REAL (the type of the
// arrays), WIDTH, ITEMS and TIER come from the compile command. PARTS has two kernels. Every number among the parameters of a kernel is
// int64 or double, because CuPy passes the numbers of Python as these.
#define LANES 1
#define BLOCKS 2
#define LONG_ROWS 3
#define COLUMNS 4
#define PARTS 5

#if TIER == LANES
#define ROW_KERNEL(NAME, OPERATION, ...)                                                                               \
    extern "C" __global__ void __launch_bounds__(256, 1)                                                                  \
        NAME##_lanes(int64 rows, int64 classes, int64 size, __VA_ARGS__) {                                               \
        lanes<ITEMS, WIDTH>(OPERATION, rows, classes, int(size));                                                          \
    }
#elif TIER == BLOCKS
#define ROW_KERNEL(NAME, OPERATION, ...)                                                                               \
    extern "C" __global__ void __launch_bounds__(512, 1) NAME##_blocks(int64 rows, int64 classes, __VA_ARGS__) {          \
        blocks<ITEMS, WIDTH>(OPERATION, rows, classes);                                                                \
    }
#elif TIER == LONG_ROWS
#define ROW_KERNEL(NAME, OPERATION, ...)                                                                               \
    extern "C" __global__ void __launch_bounds__(512, 1) NAME##_long_rows(int64 rows, int64 classes, __VA_ARGS__) {       \
        long_rows<ITEMS, WIDTH>(OPERATION, rows, classes);                                                             \
    }
#elif TIER == COLUMNS
#define ROW_KERNEL(NAME, OPERATION, ...)                                                                               \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                                  \
        NAME##_columns(int64 rows, int64 classes, int64 inner, __VA_ARGS__) {                                          \
        columns<ITEMS>(OPERATION, rows, classes, inner);                                                               \
    }
#elif TIER == PARTS
#define ROW_KERNEL(NAME, OPERATION, ...)                                                                               \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                                  \
        NAME##_gather(int64 classes, int64 parts, double* found, __VA_ARGS__) {                                          \
        gather_parts<ITEMS, WIDTH>(OPERATION, classes, int(parts), found);                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                                  \
        NAME##_join(int64 classes, int64 parts, const double* found, __VA_ARGS__) {                                      \
        join_parts<ITEMS, WIDTH>(OPERATION, classes, int(parts), found);                                                 \
    }
#endif
