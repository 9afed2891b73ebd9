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
    A z;       // the factor of the z loss
    A factor;  // of the gradient of the row
    A z_loss, z_slope;  // of the row: its z loss, and what the probabilities are multiplied by in its gradient

    __device__ LogitLoss(const T* x, T* out, bool is_gradient, Targets<T> targets, Losses<T> losses, Divisor divisor, A z)
        : x(x), out(out), is_gradient(is_gradient), targets(targets), losses(losses), divisor(divisor), z(z) {}
    __device__ void start(int64 row) {
        targets.start(row, divisor.value != 0);
        factor = targets.is_bad ? not_a_number<A>() : A(divisor.inverse) * targets.scale;
    }
    template <class S> __device__ void know(const S* sums) {
        Exponentials<T>::know(sums);
        z_loss = z_slope = 0;
        if (z == 0) return;
        A log_of_sum = this->top + log1p(this->rest);
        z_slope = 2 * z * log_of_sum * factor;
        z_loss = z * targets.scale * log_of_sum * log_of_sum;
    }
    __device__ void end() { losses.end(divisor); }
};

#define LOGIT_LOSS_PARAMETERS const REAL *x, REAL *out, int64 is_gradient, TARGET_PARAMETERS, LOSS_PARAMETERS
