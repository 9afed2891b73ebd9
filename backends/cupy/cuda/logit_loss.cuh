// Softmax and cross-entropy in one pass over the logits: the loss, and the probabilities or the gradient.
// x and out are (rows, classes), or (outer, classes, inner); labels are (rows), or of the shape of x.
#pragma once
#include "exponentials.cuh"
#include "labels.cuh"

// What is written beside the loss, and how: the gradient, `factor` times, or the probabilities.
template <class T> struct LogitLoss : Exponentials<T> {
    using A = Compute<T>;
    const T* x;
    T* out;
    bool is_gradient;
    Labels<T> labels;
    Losses<T> losses;
    Divisor divisor;
    A factor;  // of the gradient of the row

    __device__ LogitLoss(const T* x, T* out, bool is_gradient, Labels<T> labels, Losses<T> losses, Divisor divisor)
        : x(x), out(out), is_gradient(is_gradient), labels(labels), losses(losses), divisor(divisor) {}
    __device__ void start(int64 row) {
        labels.start(row, divisor.value != 0);
        factor = labels.is_bad ? not_a_number<A>() : A(divisor.inverse);
    }
    __device__ void end() { losses.end(divisor); }
};

#define LOGIT_LOSS_PARAMETERS const REAL *x, REAL *out, int64 is_gradient, LABEL_PARAMETERS, LOSS_PARAMETERS
