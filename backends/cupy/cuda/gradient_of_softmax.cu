#include "loss_gradient.cuh"

// dx = upstream (y sum(q) - q)
template <class T> struct OfSoftmax : LossGradient<T> {
    using A = Compute<T>;
    using Item = typename LossGradient<T>::Item;
    static constexpr int SUMS = 1;
    A together;

    using LossGradient<T>::LossGradient;
    template <class S> __device__ void add(S* sums, Item& item, int64) { sums[0] += item.q; }
    template <class S> __device__ void know(const S* sums) { together = A(sums[0]); }
    template <int W> __device__ void store(const Item* items, int64 at, int64) const {
        Vector<T, W> values;
        for (int i = 0; i < W; i++) {
            A slope = items[i].x * together - items[i].q;
            values.element[i] = narrow<T>(this->targets.counts ? slope * this->factor : A(0));
        }
        write(this->dx + at, values);
    }
};

ROW_KERNEL(gradient_of_softmax, (OfSoftmax<REAL>(x, dx, TARGETS, UPSTREAM, DIVISOR)), GRADIENT_PARAMETERS)
