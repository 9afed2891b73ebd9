// The targets of a loss, from labels of any dtype, and the results of a loss.
#pragma once
#include "rows.cuh"

// The dtypes of labels and of upstream gradients, in the order of KINDS in labels.py.
enum Kind { INT8, UINT8, INT16, UINT16, INT32, UINT32, INT64, UINT64, HALF, BFLOAT16, FLOAT, DOUBLE };

template <class T> constexpr Kind KIND = FLOAT;
template <> constexpr Kind KIND<double> = DOUBLE;
template <> constexpr Kind KIND<half> = HALF;
template <> constexpr Kind KIND<bfloat16> = BFLOAT16;

template <class T> __device__ inline T element(const void* x, int64 i) { return static_cast<const T*>(x)[i]; }

// A class index. A uint64 index beyond the range of int64 becomes negative, and so is out of range.
__device__ inline int64 class_index(const void* t, int kind, int64 i) {
    switch (kind) {
    case INT8: return element<signed char>(t, i);
    case UINT8: return element<unsigned char>(t, i);
    case INT16: return element<short>(t, i);
    case UINT16: return element<unsigned short>(t, i);
    case INT32: return element<int>(t, i);
    case UINT32: return element<unsigned>(t, i);
    default: return element<int64>(t, i);
    }
}

template <class A> __device__ inline A number(const void* x, int kind, int64 i) {
    switch (kind) {
    case UINT64: return A(element<unsigned long long>(x, i));
    case HALF: return widen(element<half>(x, i));
    case BFLOAT16: return widen(element<bfloat16>(x, i));
    case FLOAT: return element<float>(x, i);
    case DOUBLE: return A(element<double>(x, i));
    default: return A(class_index(x, kind, i));
    }
}

// The largest number that is taken for a probability: more than rounding makes of 1.
template <class A> constexpr A MOST = A(1.001);

// The divisor of the sum of the losses: given by the host, or computed by an earlier kernel.
struct Divisor {
    double value, inverse;

    __device__ Divisor(double value, const double* found) : value(found ? *found : value), inverse(1 / this->value) {}
};

// The labels and options of a loss, for targets q_j = w_j ((1 - e) u_j + e / classes); u_j is the label of class j.
template <class T> struct Targets {
    using A = Compute<T>;
    const void* t;
    int kind;
    bool is_index;       // one class index for each row, else a number for each class
    const A* weight;     // of each class, or null
    int64 ignore;
    bool is_ignoring;
    A keep, spread;  // 1 - e, and e / classes
    const A* of_rows;  // the weight of each row, or null
    int64 classes;

    // Of the current row: its class index, its weight, whether it counts, and whether its index is out of range.
    int64 label;
    A scale;
    bool counts, is_bad;

    __device__ void start(int64 row, bool is_divided) {
        scale = of_rows ? of_rows[row] : A(1);
        is_divided = is_divided && scale != 0;
        counts = is_divided;
        is_bad = false;
        if (!is_index) return;
        label = class_index(t, kind, row);
        bool is_ignored = is_ignoring && label == ignore;
        is_bad = !is_ignored && (label < 0 || label >= classes);
        counts = is_bad || (!is_ignored && is_divided);
        if (!counts || is_bad) label = -1;
    }
    // The targets of W classes from j on; `at` is their place in an array of the shape of the logits.
    template <int W> __device__ void fill(A (&q)[W], int64 j, int64 at) const {
        if (is_index) {
            for (int i = 0; i < W; i++) q[i] = j + i == label ? keep + spread : spread;
        } else if (kind == KIND<T>) {
            auto given = read<W>(static_cast<const T*>(t) + at);
            for (int i = 0; i < W; i++) q[i] = widen(given.element[i]) * keep + spread;
        } else {
            for (int i = 0; i < W; i++) q[i] = number<A>(t, kind, at + i) * keep + spread;
        }
        if (weight)
            for (int i = 0; i < W; i++) q[i] = q[i] == 0 ? A(0) : q[i] * weight[j + i];  // even if the weight is infinite
    }
};

// The results of a loss: the loss of each row, or the sum over the rows of each block. If there is one block, it also
// writes the loss.
template <class T> struct Losses {
    using A = Compute<T>;
    A* each;       // or null
    double* sums;  // one for each block
    A* loss;
    double sum;

    __device__ void put(int64 row, A value) {
        if (each)
            each[row] = value;
        else
            sum += double(value);
    }
    __device__ void end(Divisor divisor) {
        if (each) return;
        double total[1] = {sum};
        Block block{int(blockDim.x * blockDim.y), int(threadIdx.y * blockDim.x + threadIdx.x)};
        block.sum(total);
        if (block.rank) return;
        if (gridDim.x > 1)
            sums[blockIdx.x] = total[0];
        else
            *loss = divisor.value == 0 && total[0] == total[0] ? A(0) : A(total[0] / divisor.value);
    }
};

// The parameters of every kernel of a loss, and the structs made of them.
#define TARGET_PARAMETERS                                                                                               \
    const void *t, int64 kind, int64 is_index, const Compute<REAL>*weight, int64 ignore, int64 is_ignoring,            \
        double keep, double spread, double divisor, const double *found_divisor, const Compute<REAL>*of_rows,          \
        double z_loss
#define TARGETS                                                                                                         \
    Targets<REAL> {                                                                                                     \
        t, int(kind), bool(is_index), weight, ignore, bool(is_ignoring), Compute<REAL>(keep), Compute<REAL>(spread),    \
            of_rows, classes                                                                                                    \
    }
// The factor of the z loss; where weights of classes are divided by a sum of their own, it follows the divisor.
#define Z_LOSS Compute<REAL>(z_loss * (found_divisor ? found_divisor[1] : 1))
#define DIVISOR                                                                                                        \
    Divisor(divisor, found_divisor)
#define LOSS_PARAMETERS Compute<REAL>*each, double *block_sums, Compute<REAL>*loss
#define LOSSES                                                                                                         \
    Losses<REAL> { each, block_sums, loss, 0 }
