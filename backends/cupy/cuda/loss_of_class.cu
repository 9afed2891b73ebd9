#include "logit_loss.cuh"

// For one class per row: loss = w (log(sum(exp(x))) - x_label), dx = w (y - 1) at the label, else w y; and the z loss.
template <class T> struct LossOfClass : LogitLoss<T> {
    using A = Compute<T>;
    static constexpr int SUMS = 2;
    struct Item {
        A x;  // the logit; its exponential after `add`
    };
    bool is_mine;  // the label is among the classes of this thread, which writes the loss
    A weight, label_logit;

    using LogitLoss<T>::LogitLoss;
    __device__ static Item padding() { return {-infinity<A>()}; }
    __device__ A number(const Item& item) const { return item.x; }
    __device__ void start(int64 row) {
        LogitLoss<T>::start(row);
        is_mine = false;
        weight = this->targets.weight && this->targets.label >= 0 ? this->targets.weight[this->targets.label] : A(1);
    }
    template <int W> __device__ void load(Item* items, int64 at, int64) const {
        auto values = read<W>(this->x + at);
        for (int i = 0; i < W; i++) items[i].x = widen(values.element[i]);
    }
    template <class S> __device__ void add(S* sums, Item& item, int64 j) {
        if (j == this->targets.label) {
            is_mine = true;
            label_logit = item.x;
        }
        item.x = this->add_exponential(sums, item.x);
    }
    template <int W> __device__ void store(const Item* items, int64 at, int64 j) const {
        Vector<T, W> values;
        for (int i = 0; i < W; i++) {
            A y = items[i].x * this->inverse;
            A value = y;
            if (this->is_gradient) {
                // Where y is near 1, y - 1 would lose the digits that the rest of the sum has.
                bool is_sure = items[i].x == 1 && this->rest < 1;
                A slope = j + i != this->targets.label ? y : is_sure ? -(this->rest * this->inverse) : y - 1;
                value = this->targets.counts ? slope * (this->factor * weight) + y * this->z_slope : A(0);
            }
            values.element[i] = narrow<T>(value);
        }
        write(this->out + at, values);
    }
    __device__ void finish(int64 row, bool first) {
        if (is_mine) {
            A loss = (this->top - label_logit) + log1p(this->rest);
            A scale = weight * this->targets.scale;
            this->losses.put(row, (scale == 0 && loss == infinity<A>() ? A(0) : loss * scale) + this->z_loss);
        } else if (first && this->targets.label < 0) {
            this->losses.put(row, this->targets.is_bad ? not_a_number<A>() : A(0));
        }
    }
};

ROW_KERNEL(loss_of_class, (LossOfClass<REAL>(x, out, is_gradient, TARGETS, LOSSES, DIVISOR, Z_LOSS)), LOGIT_LOSS_PARAMETERS)
