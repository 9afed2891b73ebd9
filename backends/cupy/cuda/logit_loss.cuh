// Softmax and cross-entropy in one pass over the logits: the loss, and the probabilities or the gradient.
// x and out are (rows, classes), or (outer, classes, inner); labels are (rows), or of the shape of x.
#pragma once
#include "exponentials.cuh"
#include "targets.cuh"

// The second result is the gradient times `factor`, or the probabilities.
template <class T> struct LogitLoss : Exponentials<T> {
    using A = Compute<T>;
    const T* x;
    T* out;
    bool is_gradient;
    Targets<T> targets;
    Losses<T> losses;
    Divisor divisor;
    A factor;  // of the gradient of the row

    __device__ LogitLoss(const T* x, T* out, bool is_gradient, Targets<T> targets, Losses<T> losses, Divisor divisor)
        : x(x), out(out), is_gradient(is_gradient), targets(targets), losses(losses), divisor(divisor) {}
    __device__ void start(int64 row) {
        targets.start(row, divisor.value != 0);
        factor = targets.is_bad ? not_a_number<A>() : A(divisor.inverse);
    }
    __device__ void end() { losses.end(divisor); }
};

#define LOGIT_LOSS_PARAMETERS const REAL *x, REAL *out, int64 is_gradient, TARGET_PARAMETERS, LOSS_PARAMETERS
