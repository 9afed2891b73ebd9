#include "loss_gradient.cuh"

// dp = -upstream q / p, and 0 where q is 0
template <class T> struct OfProbabilities : LossGradient<T> {
    using A = Compute<T>;
    using Item = typename LossGradient<T>::Item;
    static constexpr int SUMS = 0;

    using LossGradient<T>::LossGradient;
    template <class S> __device__ void add(S*, Item&, int64) {}
    template <int W> __device__ void store(const Item* items, int64 at, int64) const {
        Vector<T, W> values;
        for (int i = 0; i < W; i++) {
            A q = items[i].q, value = -this->factor * q / items[i].x;
            values.element[i] = narrow<T>(this->targets.is_bad                   ? this->factor
                                          : this->targets.counts && q != 0 ? value
                                                                                : A(0));
        }
        write(this->dx + at, values);
    }
};

ROW_KERNEL(gradient_of_probabilities, (OfProbabilities<REAL>(x, dx, TARGETS, UPSTREAM, DIVISOR)), GRADIENT_PARAMETERS)
