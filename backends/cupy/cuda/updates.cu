// Steps of optimizers: parameters and their states are updated where they are, each element by one thread.
//
// The numbers of a step, such as the rate, are those at `given`, which a CUDA graph reads anew at each launch, or if that
// is null the arguments. `put_numbers` writes them there.
#include "real.cuh"

using A = Compute<REAL>;

struct Numbers {
    const double* given;
    double argument[6];
    __device__ double operator[](int i) const { return given ? given[i] : argument[i]; }
};

#define NUMBER_PARAMETERS double n0, double n1, double n2, double n3, double n4, double n5
#define STEP_PARAMETERS const double *given, NUMBER_PARAMETERS
#define NUMBERS Numbers{given, {n0, n1, n2, n3, n4, n5}}
#define EACH_ELEMENT(i)                                                                                                \
    for (int64 i = blockIdx.x * int64(blockDim.x) + threadIdx.x; i < size; i += int64(gridDim.x) * blockDim.x)

extern "C" __global__ void __launch_bounds__(256, 2) put_numbers(double* target, NUMBER_PARAMETERS) {
    double numbers[] = {n0, n1, n2, n3, n4, n5};
    for (int i = 0; i < 6; i++) target[i] = numbers[i];
}

// The gradient with that of the decay; without one, an infinite parameter adds nothing.
__device__ inline A slope_of(A g, A p, A decay) { return decay != 0 ? g + decay * p : g; }

// The numbers: lr, momentum, nesterov, decay. Without momentum v is null.
extern "C" __global__ void __launch_bounds__(256, 2)
    sgd(int64 size, REAL* p, const REAL* g, A* v, STEP_PARAMETERS) {
    Numbers numbers = NUMBERS;
    A lr = A(numbers[0]), momentum = A(numbers[1]), decay = A(numbers[3]);
    bool nesterov = numbers[2] != 0;
    EACH_ELEMENT(i) {
        A x = widen(p[i]), d = slope_of(widen(g[i]), x, decay);
        if (v) {
            A velocity = momentum * v[i] + d;
            v[i] = velocity;
            d = nesterov ? d + momentum * velocity : velocity;
        }
        p[i] = narrow<REAL>(x - lr * d);
    }
}

// Updates the means of d and of its square, and returns what the step takes off the parameter. The first five numbers:
// step, root, beta1, beta2, eps.
__device__ inline A adam_step(const Numbers& numbers, A d, A& m, A& v) {
    m = A(numbers[2]) * m + A(1 - numbers[2]) * d;
    v = A(numbers[3]) * v + A(1 - numbers[3]) * d * d;
    return A(numbers[0]) * m / (sqrt(v) / A(numbers[1]) + A(numbers[4]));
}

// The sixth number: decay.
extern "C" __global__ void __launch_bounds__(256, 2)
    adam(int64 size, REAL* p, const REAL* g, A* m, A* v, STEP_PARAMETERS) {
    Numbers numbers = NUMBERS;
    EACH_ELEMENT(i) {
        A x = widen(p[i]), d = slope_of(widen(g[i]), x, A(numbers[5]));
        p[i] = narrow<REAL>(x - adam_step(numbers, d, m[i], v[i]));
    }
}

// The sixth number: the share of the parameter that is kept.
extern "C" __global__ void __launch_bounds__(256, 2)
    adamw(int64 size, REAL* p, const REAL* g, A* m, A* v, STEP_PARAMETERS) {
    Numbers numbers = NUMBERS;
    EACH_ELEMENT(i) {
        A step = adam_step(numbers, widen(g[i]), m[i], v[i]);
        p[i] = narrow<REAL>(A(numbers[5]) * widen(p[i]) - step);
    }
}

// The numbers: lr, alpha, eps, momentum, decay. m is null unless centered; without momentum v is null.
extern "C" __global__ void __launch_bounds__(256, 2)
    rmsprop(int64 size, REAL* p, const REAL* g, A* s, A* m, A* v, STEP_PARAMETERS) {
    Numbers numbers = NUMBERS;
    A lr = A(numbers[0]), alpha = A(numbers[1]), rest = A(1 - numbers[1]), eps = A(numbers[2]);
    A momentum = A(numbers[3]), decay = A(numbers[4]);
    EACH_ELEMENT(i) {
        A x = widen(p[i]), d = slope_of(widen(g[i]), x, decay);
        A variance = alpha * s[i] + rest * d * d;
        s[i] = variance;
        if (m) {
            A mean = alpha * m[i] + rest * d;
            m[i] = mean;
            variance -= mean * mean;
            if (variance < 0) variance = 0;  // by rounding; NaN stays
        }
        d = d / (sqrt(variance) + eps);
        if (v) {
            d = momentum * v[i] + d;
            v[i] = d;
        }
        p[i] = narrow<REAL>(x - lr * d);
    }
}
