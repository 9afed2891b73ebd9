// Sigmoid and binary cross-entropy, element by element; the sums of the losses are taken for each block.
#include "targets.cuh"

// Weights, which broadcast to the logits: that of element i is at i / inner, modulo their number.
template <class A> struct Weights {
    const A* values;  // or null
    int64 size, inner;

    __device__ A of(int64 i) const { return values ? values[i / inner % size] : A(1); }
};

template <class A> struct Labels {
    const void* t;
    int kind;
    int64 ignore;    // the label of ignored elements, if labels are integers,
    double ignored;  // and if they are numbers
    bool is_ignoring;
    A keep, spread;  // 1 - e and e / 2
    Weights<A> weight, pos_weight;

    __device__ bool is_ignored(int64 i) const {
        if (!is_ignoring) return false;
        return kind < HALF ? class_index(t, kind, i) == ignore : number<double>(t, kind, i) == ignored;
    }
    // What log(1 + exp(-x)) and log(1 + exp(x)) are multiplied by; NaN for a label outside [0, 1].
    __device__ void factors(int64 i, A& positive, A& negative) const {
        double given = number<double>(t, kind, i);
        A label = given >= 0 && given <= 1 ? A(given) : not_a_number<A>();
        A w = weight.of(i);
        positive = (keep * label + spread) * pos_weight.of(i) * w;
        negative = (keep * (1 - label) + spread) * w;
    }
};

#define LABEL_PARAMETERS                                                                                               \
    const void *t, int64 kind, int64 ignore, double ignored, int64 is_ignoring, double keep, double spread,            \
        const Compute<REAL>*weight, int64 weights, int64 inner, const Compute<REAL>*pos_weight, int64 pos_weights,     \
        int64 pos_inner, double divisor, const double *found_divisor
#define LABELS                                                                                                         \
    Labels<Compute<REAL>> {                                                                                            \
        t, int(kind), ignore, ignored, bool(is_ignoring), Compute<REAL>(keep), Compute<REAL>(spread),                  \
            {weight, weights, inner}, {pos_weight, pos_weights, pos_inner}                                             \
    }

extern "C" __global__ void __launch_bounds__(256, 2)
    count_elements(int64 size, const void* t, int64 kind, int64 ignore, double ignored, double* parts) {
    Labels<float> labels{t, int(kind), ignore, ignored, true};
    double total[1] = {0};
    for (int64 i = blockIdx.x * int64(blockDim.x) + threadIdx.x; i < size; i += int64(gridDim.x) * blockDim.x)
        total[0] += !labels.is_ignored(i);
    Block{int(blockDim.x), int(threadIdx.x)}.sum(total);
    if (threadIdx.x == 0) parts[blockIdx.x] = total[0];
}

extern "C" __global__ void __launch_bounds__(256, 2)
    binary_loss(int64 size, const REAL* x, REAL* out, int64 is_gradient, LABEL_PARAMETERS, LOSS_PARAMETERS) {
    using A = Compute<REAL>;
    auto labels = LABELS;
    auto losses = Losses<REAL>{each, block_sums, loss, 0};
    Divisor by(divisor, found_divisor);
    A scale = by.value == 0 ? A(0) : A(by.inverse);
    for (int64 i = blockIdx.x * int64(blockDim.x) + threadIdx.x; i < size; i += int64(gridDim.x) * blockDim.x) {
        A logit = widen(x[i]), positive, negative;
        labels.factors(i, positive, negative);
        bool counts = !labels.is_ignored(i);
        A magnitude = fabs(logit), e = exp(-magnitude), larger = 1 / (1 + e), smaller = e * larger;
        bool is_negative = logit < 0;
        A y = is_negative ? smaller : larger, factor = is_negative ? positive : negative;
        A value = (positive + negative) * log1p(e) + (factor == 0 ? A(0) : factor * magnitude);
        A slope = (negative * y - positive * (is_negative ? larger : smaller)) * scale;
        losses.put(i, counts ? value : A(0));
        out[i] = narrow<REAL>(!is_gradient ? y : counts ? slope : A(0));
    }
    losses.end(by);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    binary_gradient(int64 size, const REAL* y, REAL* dx, LABEL_PARAMETERS, double dloss, const void* upstream,
                    int64 upstream_kind, int64 step) {
    using A = Compute<REAL>;
    auto labels = LABELS;
    Divisor by(divisor, found_divisor);
    A scale = by.value == 0 ? A(0) : A(by.inverse);
    for (int64 i = blockIdx.x * int64(blockDim.x) + threadIdx.x; i < size; i += int64(gridDim.x) * blockDim.x) {
        A probability = widen(y[i]), positive, negative;
        labels.factors(i, positive, negative);
        A given = upstream ? number<A>(upstream, int(upstream_kind), i * step) : A(dloss);
        A slope = (negative * probability - positive * (1 - probability)) * (given * scale);
        dx[i] = narrow<REAL>(labels.is_ignored(i) ? A(0) : slope);
    }
}
