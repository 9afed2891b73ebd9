#include "logit_loss.cuh"

// For a target q_j for each class: loss = sum(q (log(sum(exp(x))) - x)), dx = y sum(q) - q; and the z loss.
template <class T> struct LossOfTargets : LogitLoss<T> {
    using A = Compute<T>;
    static constexpr int SUMS = 4, BELOW = 2, TOGETHER = 3;  // sum(q (top - x)) and sum(q)
    struct Item {
        A x, q;
    };
    A loss, together;

    using LogitLoss<T>::LogitLoss;
    __device__ static Item padding() { return {-infinity<A>(), 0}; }
    __device__ A number(const Item& item) const { return item.x; }
    template <int W> __device__ void load(Item* items, int64 at, int64 j) const {
        auto values = read<W>(this->x + at);
        A q[W];
        this->targets.template fill<W>(q, j, at);
        for (int i = 0; i < W; i++) items[i] = {widen(values.element[i]), q[i]};
    }
    template <class S> __device__ void add(S* sums, Item& item, int64) {
        if (item.q != 0) {  // a target of 0 adds 0, even to an infinite logarithm
            sums[BELOW] += item.q * (item.x == -infinity<A>() ? infinity<A>() : this->top - item.x);
            sums[TOGETHER] += item.q;
        }
        item.x = this->add_exponential(sums, item.x);
    }
    __device__ void rescale(double* sums, A top) {
        if (top > this->top && this->top > -infinity<A>())
            sums[BELOW] += sums[TOGETHER] * (double(top) - double(this->top));
        Exponentials<T>::rescale(sums, top);
    }
    template <class S> __device__ void know(const S* sums) {
        LogitLoss<T>::know(sums);
        together = A(sums[TOGETHER]);
        loss = A(sums[BELOW] + sums[TOGETHER] * S(log1p(this->rest)));
    }
    template <int W> __device__ void store(const Item* items, int64 at, int64) const {
        Vector<T, W> values;
        for (int i = 0; i < W; i++) {
            A e = items[i].x, q = items[i].q, value = e * this->inverse;
            if (this->is_gradient) {
                // The same as y sum(q) - q, but no difference of like numbers where y is near 1.
                A slope = e == 1 && this->rest < 1 ? (together - q) - together * (this->rest * this->inverse)
                                                   : together * value - q;
                value = this->targets.counts ? slope * this->factor + value * this->z_slope : A(0);
            }
            values.element[i] = narrow<T>(value);
        }
        write(this->out + at, values);
    }
    __device__ void finish(int64 row, bool first) {
        A total = loss * this->targets.scale + this->z_loss;
        if (first)
            this->losses.put(row, this->targets.is_bad ? not_a_number<A>() : this->targets.counts ? total : A(0));
    }
};

ROW_KERNEL(loss_of_targets, (LossOfTargets<REAL>(x, out, is_gradient, TARGETS, LOSSES, DIVISOR, Z_LOSS)), LOGIT_LOSS_PARAMETERS)
