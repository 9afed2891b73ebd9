#include "loss_gradient.cuh"

// dp = -upstream q / p, and 0 where q is 0; NaN in a row where some p with a q is no probability
template <class T> struct OfProbabilities : LossGradient<T> {
    using A = Compute<T>;
    using Item = typename LossGradient<T>::Item;
    static constexpr int SUMS = 1;
    bool is_wrong;

    using LossGradient<T>::LossGradient;
    template <class S> __device__ void add(S* sums, Item& item, int64) {
        if (item.q != 0 && (item.x < 0 || item.x > MOST<A>)) sums[0] += 1;
    }
    template <class S> __device__ void know(const S* sums) {
        is_wrong = this->targets.is_bad || (this->targets.counts && sums[0] != 0);
    }
    template <int W> __device__ void store(const Item* items, int64 at, int64) const {
        Vector<T, W> values;
        for (int i = 0; i < W; i++) {
            A q = items[i].q, value = -this->factor * q / items[i].x;
            values.element[i] = narrow<T>(is_wrong ? not_a_number<A>() : this->targets.counts && q != 0 ? value : A(0));
        }
        write(this->dx + at, values);
    }
};

ROW_KERNEL(gradient_of_probabilities, (OfProbabilities<REAL>(x, dx, TARGETS, UPSTREAM, DIVISOR)), GRADIENT_PARAMETERS)
