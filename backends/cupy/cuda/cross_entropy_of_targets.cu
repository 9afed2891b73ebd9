// Cross-entropy of probabilities: loss = -sum(q log(p)).
// p is (rows, classes), or (outer, classes, inner); labels are (rows), or of the shape of p.
#include "targets.cuh"

// For a target for each class.
template <class T> struct CrossEntropy : Operation<T> {
    using A = Compute<T>;
    static constexpr bool WRITES = false;
    static constexpr int SUMS = 1;
    struct Item {
        A p, q;
    };
    const T* p;
    Targets<T> targets;
    Losses<T> losses;
    Divisor divisor;
    A loss;

    __device__ CrossEntropy(const T* p, Targets<T> targets, Losses<T> losses, Divisor divisor)
        : p(p), targets(targets), losses(losses), divisor(divisor) {}
    __device__ static Item padding() { return {1, 0}; }
    __device__ void start(int64 row) { targets.start(row, divisor.value != 0); }
    template <int W> __device__ void load(Item* items, int64 at, int64 j) const {
        auto values = read<W>(p + at);
        A q[W];
        targets.template fill<W>(q, j, at);
        for (int i = 0; i < W; i++) items[i] = {widen(values.element[i]), q[i]};
    }
    template <class S> __device__ void add(S* sums, Item& item, int64) {
        A term = item.q != 0 && item.p > MOST<A> ? not_a_number<A>() : -log(item.p);
        sums[0] += item.q == 0 && term == infinity<A>() ? A(0) : item.q * term;
    }
    template <class S> __device__ void know(const S* sums) { loss = A(sums[0]); }
    template <int W> __device__ void store(const Item*, int64, int64) const {}
    __device__ void finish(int64 row, bool first) {
        if (first) losses.put(row, targets.is_bad ? not_a_number<A>() : targets.counts ? loss * targets.scale : A(0));
    }
    __device__ void end() { losses.end(divisor); }
};

ROW_KERNEL(cross_entropy_of_targets, (CrossEntropy<REAL>(p, TARGETS, LOSSES, DIVISOR)), const REAL* p, TARGET_PARAMETERS,
           LOSS_PARAMETERS)
