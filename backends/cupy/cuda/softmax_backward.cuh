// The gradient of softmax; log_softmax_backward.cu derives that of log-softmax from it. dy, y and dx are (rows, classes),
// or (outer, classes, inner) with rows = outer * inner.
#pragma once
#include "rows.cuh"

// dx = y (dy - sum(dy y))
template <class T> struct SoftmaxBackward : Operation<T> {
    using A = Compute<T>;
    static constexpr int SUMS = 1;
    struct Item {
        A dy, y;
    };
    const T *dy, *y;
    T* dx;
    A sum;

    __device__ SoftmaxBackward(const T* dy, const T* y, T* dx) : dy(dy), y(y), dx(dx) {}
    __device__ static Item padding() { return {0, 0}; }
    template <int W> __device__ void load(Item* items, int64 at, int64) const {
        auto upstream = read<W>(dy + at);
        auto values = read<W>(y + at);
        for (int i = 0; i < W; i++) items[i] = {widen(upstream.element[i]), widen(values.element[i])};
    }
    template <class S> __device__ void add(S* sums, Item& item, int64) { sums[0] += item.dy * item.y; }
    template <class S> __device__ void know(const S* sums) { sum = A(sums[0]); }
    template <int W> __device__ void store(const Item* items, int64 at, int64) const {
        Vector<T, W> values;
        for (int i = 0; i < W; i++) values.element[i] = narrow<T>(items[i].y * (items[i].dy - sum));
        write(dx + at, values);
    }
};
