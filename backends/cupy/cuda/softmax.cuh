// Softmax; log_softmax.cu derives log-softmax from it. x and y are (rows, classes), or (outer, classes, inner) with
// rows = outer * inner.
#pragma once
#include "exponentials.cuh"

// y = exp(x) / sum(exp(x))
template <class T> struct Softmax : Exponentials<T> {
    using A = Compute<T>;
    static constexpr int SUMS = 2;
    struct Item {
        A x;  // the logit; its exponential after `add`
    };
    const T* x;
    T* y;

    __device__ Softmax(const T* x, T* y) : x(x), y(y) {}
    __device__ static Item padding() { return {-infinity<A>()}; }
    __device__ A number(const Item& item) const { return item.x; }
    template <int W> __device__ void load(Item* items, int64 at, int64) const {
        auto values = read<W>(x + at);
        for (int i = 0; i < W; i++) items[i].x = widen(values.element[i]);
    }
    template <class S> __device__ void add(S* sums, Item& item, int64) { item.x = this->add_exponential(sums, item.x); }
    template <int W> __device__ void store(const Item* items, int64 at, int64) const {
        Vector<T, W> values;
        for (int i = 0; i < W; i++) values.element[i] = narrow<T>(items[i].x * this->inverse);
        write(y + at, values);
    }
};
