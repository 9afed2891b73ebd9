#include "softmax.cuh"

// y = x - log(sum(exp(x)))
template <class T> struct LogSoftmax : Softmax<T> {
    using A = Compute<T>;
    using Item = typename Softmax<T>::Item;
    A log_of_sum;  // less the largest

    __device__ LogSoftmax(const T* x, T* y) : Softmax<T>(x, y) {}
    template <class S> __device__ void add(S* sums, Item& item, int64) {
        this->add_exponential(sums, item.x);
        item.x -= this->top;
    }
    template <class S> __device__ void know(const S* sums) {
        Softmax<T>::know(sums);
        log_of_sum = log1p(this->rest);
    }
    template <int W> __device__ void store(const Item* items, int64 at, int64) const {
        Vector<T, W> values;
        for (int i = 0; i < W; i++) values.element[i] = narrow<T>(items[i].x - log_of_sum);
        write(this->y + at, values);
    }
};

ROW_KERNEL(log_softmax, LogSoftmax<REAL>(x, y), const REAL* x, REAL* y)
