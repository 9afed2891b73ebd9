// The gradients of losses, given the upstream gradient of the loss of each row, or of the reduced loss.
// x (probabilities) and dx are (rows, classes), or (outer, classes, inner); labels are (rows), or of the shape of x.
#pragma once
#include "targets.cuh"

// The upstream gradient: a number, an array with an entry for each row, or an array of one entry with a step of 0.
struct Upstream {
    double value;
    const void* array;
    int kind;
    int64 step;

    __device__ double operator()(int64 row) const { return array ? number<double>(array, kind, row * step) : value; }
};

template <class T> struct LossGradient : Operation<T> {
    using A = Compute<T>;
    struct Item {
        A x, q;
    };
    const T* x;
    T* dx;
    Targets<T> targets;
    Upstream upstream;
    Divisor divisor;
    A factor;

    __device__ LossGradient(const T* x, T* dx, Targets<T> targets, Upstream upstream, Divisor divisor)
        : x(x), dx(dx), targets(targets), upstream(upstream), divisor(divisor) {}
    __device__ static Item padding() { return {1, 0}; }
    __device__ void start(int64 row) {
        targets.start(row, divisor.value != 0);
        factor = targets.is_bad ? not_a_number<A>() : A(upstream(row) * divisor.inverse) * targets.scale;
    }
    template <int W> __device__ void load(Item* items, int64 at, int64 j) const {
        auto values = read<W>(x + at);
        A q[W];
        targets.template fill<W>(q, j, at);
        for (int i = 0; i < W; i++) items[i] = {widen(values.element[i]), q[i]};
    }
};

#define GRADIENT_PARAMETERS                                                                                            \
    const REAL *x, REAL *dx, TARGET_PARAMETERS, double upstream, const void *upstreams, int64 upstream_kind, int64 step
#define UPSTREAM                                                                                                       \
    Upstream { upstream, upstreams, int(upstream_kind), step }
