// Kernels that compute each element of the result from the elements at the same place.
#include "real.cuh"

template <class A> struct Relu {
    __device__ static A of(A x) { return x < 0 ? A(0) : x; }  // NaN stays
};
template <class A> struct ReluBackward {
    __device__ static A of(A dy, A y) { return y > 0 ? dy : A(0); }
};
template <class A> struct LeakyRelu {
    A slope;
    __device__ A of(A x) const { return x > 0 ? x : slope * x; }
};
template <class A> struct LeakyReluBackward {
    A slope;
    __device__ A of(A dy, A x) const { return x > 0 ? dy : slope * dy; }
};
// 1 / (1 + exp(-x)), with an exponential that cannot overflow
template <class A> struct Sigmoid {
    __device__ static A of(A x) {
        A e = exp(-fabs(x));
        return (x < 0 ? e : A(1)) / (1 + e);
    }
};
template <class A> struct SigmoidBackward {
    __device__ static A of(A dy, A y) { return dy * y * (1 - y); }
};
template <class A> struct Tanh {
    __device__ static A of(A x) { return tanh(x); }
};
template <class A> struct TanhBackward {
    __device__ static A of(A dy, A y) { return dy * ((1 - y) * (1 + y)); }
};

template <class F, class T, class... Ts> __device__ inline Vector<T, WIDTH> each(F f, Vector<T, WIDTH> x, Ts... more) {
    Vector<T, WIDTH> values;
    for (int k = 0; k < WIDTH; k++)
        values.element[k] = narrow<T>(f.of(widen(x.element[k]), widen(more.element[k])...));
    return values;
}

// Every thread takes WIDTH elements at a time; the first threads take those that are left over, one each.
template <class F, class T, class... Ts> __device__ inline void map(F f, int64 size, T* out, const Ts*... in) {
    int64 first = blockIdx.x * int64(blockDim.x) + threadIdx.x, step = int64(gridDim.x) * blockDim.x;
    int64 whole = size / WIDTH * WIDTH;
    for (int64 i = first * WIDTH; i < whole; i += step * WIDTH) {
        write(out + i, each(f, read<WIDTH>(in + i)...));
    }
    if (int64 i = whole + first; i < size) out[i] = narrow<T>(f.of(widen(in[i])...));
}

// The prefix keeps the names of kernels apart from those of C's functions, such as tanh.
#define MAP(NAME, FUNCTION)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256, 2) map_##NAME(int64 size, const REAL* x, REAL* out) {               \
        map(FUNCTION<Compute<REAL>>{}, size, out, x);                                                                  \
    }
#define MAP_OF_TWO(NAME, FUNCTION)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256, 2) map_##NAME(int64 size, const REAL* dy, const REAL* y, REAL* out) { \
        map(FUNCTION<Compute<REAL>>{}, size, out, dy, y);                                                              \
    }
#define MAP_WITH_NUMBER(NAME, FUNCTION)                                                                                \
    extern "C" __global__ void __launch_bounds__(256, 2) map_##NAME(int64 size, const REAL* x, REAL* out, double number) { \
        map(FUNCTION<Compute<REAL>>{Compute<REAL>(number)}, size, out, x);                                             \
    }
#define MAP_OF_TWO_WITH_NUMBER(NAME, FUNCTION)                                                                         \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                               \
        map_##NAME(int64 size, const REAL* dy, const REAL* y, REAL* out, double number) {                              \
        map(FUNCTION<Compute<REAL>>{Compute<REAL>(number)}, size, out, dy, y);                                         \
    }

MAP(relu, Relu)
MAP_OF_TWO(relu_backward, ReluBackward)
MAP_WITH_NUMBER(leaky_relu, LeakyRelu)
MAP_OF_TWO_WITH_NUMBER(leaky_relu_backward, LeakyReluBackward)
MAP(sigmoid, Sigmoid)
MAP_OF_TWO(sigmoid_backward, SigmoidBackward)
MAP(tanh, Tanh)
MAP_OF_TWO(tanh_backward, TanhBackward)
