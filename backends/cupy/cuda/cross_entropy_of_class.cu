// Cross-entropy of probabilities for one class per row, whose probability is all that is read: loss = -w log(p).
// p is (outer, classes, inner), labels are (outer, inner).
#include "targets.cuh"

// A thread takes a row.
extern "C" __global__ void __launch_bounds__(256, 2)
    cross_entropy_of_class(int64 rows, int64 classes, int64 inner, const REAL* p, TARGET_PARAMETERS, LOSS_PARAMETERS) {
    using A = Compute<REAL>;
    auto targets = TARGETS;
    auto losses = LOSSES;
    auto divided_by = DIVISOR;
    for (int64 row = blockIdx.x * int64(blockDim.x) + threadIdx.x; row < rows; row += int64(gridDim.x) * blockDim.x) {
        targets.start(row, divided_by.value != 0);
        A value = targets.is_bad ? not_a_number<A>() : A(0);
        if (targets.label >= 0) {
            A weight = (targets.weight ? targets.weight[targets.label] : A(1)) * targets.scale;
            A probability = widen(p[(row / inner * classes + targets.label) * inner + row % inner]);
            A term = weight != 0 && probability > MOST<A> ? not_a_number<A>() : -log(probability);
            value = weight == 0 && term == infinity<A>() ? A(0) : term * weight;
        }
        losses.put(row, value);
    }
    losses.end(divided_by);
}
