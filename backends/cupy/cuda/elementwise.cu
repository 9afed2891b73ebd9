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

// x / (1 + exp(-x)). Far below 0, in float64, by the root of an exponential: that is normal where the result is.
template <class A> struct Silu {
    __device__ static A of(A x) { return x < -80 ? A(low(x < -2000 ? -2000 : x)) : x / (1 + exp(-x)); }
    __device__ static double low(double x) {
        double root = exp(0.5 * x);
        return x * root * root;
    }
};

// s (1 + steep (1 - s)) with s = 1 / (1 + e); of negative numbers s = e / (1 + e), and steep is negative
template <class A> __device__ inline A logistic_slope(bool negative, A e, A steep) {
    A large = 1 / (1 + e), small = e * large;
    return negative ? small * (1 - steep * large) : large * (1 + steep * small);
}
template <class A> __device__ inline A bounded_size(A x, A most) {
    A size = fabs(x);
    return size > most ? most : size;  // NaN stays
}
template <class A> struct SiluBackward {
    __device__ static A of(A dy, A x) {
        A size = bounded_size(x, A(2000));
        return dy * logistic_slope(x < 0, exp(-size), size);
    }
};

// Of the tail of the normal distribution, exp(-a^2 / 2) G(a): the exponential, and G in two parts. The polynomial is that
// of plugrad.backends.normal. fma gives what the rounding of products loses.
template <class A> struct NormalTail {
    A e, g, g_low;
    __device__ explicit NormalTail(A a) {
        const A coefficients[] = {NORMAL_TAIL};
        const int last = sizeof(coefficients) / sizeof(A) - 1;
        A square = a * a;
        e = exp(A(-0.5) * square);
        e = fma(e, A(-0.5) * fma(a, a, -square), e);
        A total = a + A(NORMAL_SHIFT), back = total - a;
        A lost = (a - (total - back)) + (A(NORMAL_SHIFT) - back);
        A r = 1 / total, r_low = r * (fma(-total, r, A(1)) - lost * r);
        A u = fma(A(-2 * NORMAL_SHIFT), r, A(1)) - A(2 * NORMAL_SHIFT) * r_low;
        A p = coefficients[0];
        for (int i = 1; i < last; i++) p = fma(p, u, coefficients[i]);
        A top = fma(p, u, coefficients[last]), top_low = fma(p, u, coefficients[last] - top);
        g = top * r;
        g_low = fma(top, r, -g) + (top * r_low + top_low * r);
    }
};
template <class A> struct Gelu {
    __device__ static A of(A x) {
        A size = bounded_size(x, A(NORMAL_END));
        NormalTail<A> tail(size);
        A moment = size * tail.g, moment_low = fma(size, tail.g, -moment) + size * tail.g_low;
        A low = fma(tail.e, moment_low, tail.e * moment);
        return x < 0 ? -low : x * (fma(-tail.e, tail.g, A(1)) - tail.e * tail.g_low);
    }
};
template <class A> struct GeluBackward {
    __device__ static A of(A dy, A x) {
        A size = bounded_size(x, A(NORMAL_END));
        NormalTail<A> tail(size);
        A slope = tail.e * (tail.g - size * A(INVERSE_ROOT));
        return dy * (x < 0 ? slope : 1 - slope);
    }
};

// x / (1 + exp(-v)) with v = x (GELU_A + GELU_B x^2), kept with what its rounding loses
template <class A> struct GeluTanh {
    __device__ static A of(A x) {
        const A first = GELU_A, first_low = GELU_A - double(first), second = GELU_B, second_low = GELU_B - double(second);
        A size = bounded_size(x, A(NORMAL_END));
        A square = size * size, cubic = second * square;
        A rest = fma(second, square, -cubic) + (second * fma(size, size, -square) + second_low * square);
        A total = first + cubic, back = total - first;
        rest += (first - (total - back)) + (cubic - back) + first_low;
        A v = size * total;
        if (x < 0 && v > 80) return A(-low(size));
        A e = exp(-v);
        e -= e * (fma(size, total, -v) + size * rest);
        return (x < 0 ? -(size * e) : x) / (1 + e);
    }
    __device__ static double low(double size) {
        double root = exp(-0.5 * size * (GELU_A + GELU_B * size * size));
        return size * root * root;
    }
};
template <class A> struct GeluTanhBackward {
    __device__ static A of(A dy, A x) {
        A size = bounded_size(x, A(NORMAL_END)), square = size * size;
        A e = exp(-(size * (A(GELU_A) + A(GELU_B) * square)));
        return dy * logistic_slope(x < 0, e, size * (A(GELU_A) + A(3 * GELU_B) * square));
    }
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

// Dropout. Every thread takes the elements of one block of Philox4x32-10 at a time. The seed is a number, or in memory.
using uint64 = unsigned long long;
struct Words {
    unsigned word[4];
    __device__ Words(uint64 counter, uint64 key) : word{unsigned(counter), unsigned(counter >> 32), 0, 0} {
        unsigned k0 = unsigned(key), k1 = unsigned(key >> 32);
        for (int i = 0; i < PHILOX_ROUNDS; i++) {
            uint64 p = uint64(PHILOX_M0) * word[0], q = uint64(PHILOX_M1) * word[2];
            word[0] = unsigned(q >> 32) ^ word[1] ^ k0;
            word[1] = unsigned(q);
            word[2] = unsigned(p >> 32) ^ word[3] ^ k1;
            word[3] = unsigned(p);
            k0 += PHILOX_W0;
            k1 += PHILOX_W1;
        }
    }
};
#define MAP_BY_WORDS(NAME)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                               \
        map_##NAME(int64 size, const REAL* x, REAL* out, const uint64* place, uint64 seed, uint64 threshold, double factor) { \
        using A = Compute<REAL>;                                                                                       \
        int64 first = blockIdx.x * int64(blockDim.x) + threadIdx.x, step = int64(gridDim.x) * blockDim.x;              \
        if (place) seed = *place;                                                                                      \
        for (int64 block = first; 4 * block < size; block += step) {                                                   \
            Words words(block, seed);                                                                                  \
            for (int k = 0; k < 4; k++)                                                                                \
                if (int64 i = 4 * block + k; i < size)                                                                 \
                    out[i] = narrow<REAL>(words.word[k] >= threshold ? widen(x[i]) * A(factor) : A(0));                \
        }                                                                                                              \
    }

MAP(relu, Relu)
MAP_OF_TWO(relu_backward, ReluBackward)
MAP_WITH_NUMBER(leaky_relu, LeakyRelu)
MAP_OF_TWO_WITH_NUMBER(leaky_relu_backward, LeakyReluBackward)
MAP(sigmoid, Sigmoid)
MAP_OF_TWO(sigmoid_backward, SigmoidBackward)
MAP(tanh, Tanh)
MAP_OF_TWO(tanh_backward, TanhBackward)
MAP(silu, Silu)
MAP_OF_TWO(silu_backward, SiluBackward)
MAP(gelu_none, Gelu)
MAP_OF_TWO(gelu_backward_none, GeluBackward)
MAP(gelu_tanh, GeluTanh)
MAP_OF_TWO(gelu_backward_tanh, GeluTanhBackward)
MAP_BY_WORDS(dropout)
