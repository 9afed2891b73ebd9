#include "softmax_backward.cuh"

// dx = dy - exp(y) sum(dy)
template <class T> struct LogSoftmaxBackward : SoftmaxBackward<T> {
    using A = Compute<T>;
    using Item = typename SoftmaxBackward<T>::Item;

    __device__ LogSoftmaxBackward(const T* dy, const T* y, T* dx) : SoftmaxBackward<T>(dy, y, dx) {}
    template <class S> __device__ void add(S* sums, Item& item, int64) {
        sums[0] += item.dy;
        item.y = exp(item.y);
    }
    template <int W> __device__ void store(const Item* items, int64 at, int64) const {
        Vector<T, W> values;
        for (int i = 0; i < W; i++) values.element[i] = narrow<T>(items[i].dy - items[i].y * this->sum);
        write(this->dx + at, values);
    }
};

ROW_KERNEL(log_softmax_backward, LogSoftmaxBackward<REAL>(dy, y, dx), const REAL* dy, const REAL* y, REAL* dx)
