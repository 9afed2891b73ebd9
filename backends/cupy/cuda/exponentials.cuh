// The exponentials of a row and their sum, for softmax and the losses of logits.
#pragma once
#include "rows.cuh"

// exp(x - top). The difference is rounded, by half an ulp of itself, which is the relative error of the exponential: 32
// ulp where they are 87 apart. Knuth's TwoSum ("The Art of Computer Programming", volume 2, section 4.2.2) gives the
// error, which is compensated; in results of 16 bits it is below the rounding.
template <class Real> __device__ inline Compute<Real> exponential(Compute<Real> x, Compute<Real> top) {
    auto z = x - top;
    auto e = exp(z);
    if (sizeof(Real) == 2) return e;
    auto back = z - x;
    auto error = (x - (z - back)) - (top + back);
    return e + e * larger(error, Compute<Real>(-1));  // where z is -inf the error is NaN, and e is 0
}

// The sum has two parts: the exponentials of the largest elements, each of which is 1, and the rest. In a row predicted
// with confidence, rounding a single sum would lose the small terms.
template <class T> struct Exponentials : Operation<T> {
    using A = Compute<T>;
    static constexpr bool TOP = true;
    static constexpr int REST = 0, LARGEST = 1;  // the places in the sums

    A rest, inverse;  // of the row: the sum but one of the largest, and 1 / the sum

    // Adds an element, and returns its exponential.
    template <class S> __device__ A add_exponential(S* sums, A x) {
        A e = exponential<T>(x, this->top);
        bool is_largest = x == this->top;
        sums[REST] += is_largest ? A(0) : e;
        sums[LARGEST] += is_largest ? A(1) : A(0);
        return e;
    }

    __device__ void rescale(double* sums, A top) {
        if (top == this->top) return;
        sums[REST] = (sums[REST] + sums[LARGEST]) * exponential<double>(this->top, top);
        sums[LARGEST] = 0;
        this->top = top;
    }

    template <class S> __device__ void know(const S* sums) {
        A poison = this->top - this->top;  // NaN if the largest is infinite: the row is NaN then
        rest = A(sums[REST] + (sums[LARGEST] - S(1))) + poison;
        inverse = A(1) / (A(1) + rest);
    }
};
