// A device on the CPU: what the CUDA sources use of CUDA, for g++.
//
// Every kernel is compiled many times, for each dtype and length of rows. The threads are in device.cpp, which is compiled
// once and linked with each: beside a small kernel they would take half of the time. <cmath> and <utility> would take more
// still, so that the few functions needed from them are defined here.
#pragma once
#include <cstddef>
#include <cstring>

#define __global__ __attribute__((annotate_kernel))
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

#pragma GCC visibility push(hidden)  // each library of kernels has threads of its own
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace device {

// Waits for all threads of the block.
void barrier();

// The value that is given by the lane whose number differs by the bits in `lanes`.
unsigned long long shuffle(unsigned long long value, int lanes);

// Runs `body(given)` in each thread of a grid. `sizes` has the bytes of each argument of the kernel, as the caller passes
// it, and must equal `expected`. Returns an error message, or null.
const char* launch(void (*body)(void*), void* given, const int* expected, int expected_count, const int* sizes,
                   int count, const unsigned* grid, const unsigned* block, int order);

template <size_t... I> struct Indices {};

template <class... P> struct Launch {
    void (*kernel)(P...);
    void** arguments;
    template <size_t... I> void call(Indices<I...>) { kernel(*static_cast<P*>(arguments[I])...); }
    static void run(void* self) { static_cast<Launch*>(self)->call(Indices<__integer_pack(sizeof...(P))...>{}); }
};

// Runs a kernel, whose arguments are given by address.
template <class... P>
const char* launch(void (*kernel)(P...), const unsigned* grid, const unsigned* block, void** arguments,
                   const int* sizes, int count, int order) {
    int expected[] = {int(sizeof(P))...};
    Launch<P...> given{kernel, arguments};
    return launch(Launch<P...>::run, &given, expected, sizeof...(P), sizes, count, grid, block, order);
}

}  // namespace device
#pragma GCC visibility pop

// ---------------------------------------------------------------------------------------------------------------------
// Functions of CUDA
// ---------------------------------------------------------------------------------------------------------------------

inline void __syncthreads() { device::barrier(); }

inline unsigned atomicAdd(unsigned* place, unsigned value) { return __atomic_fetch_add(place, value, __ATOMIC_RELAXED); }

template <class T> inline T __shfl_xor_sync(unsigned, T value, int lanes) {
    unsigned long long bits = 0;
    static_assert(sizeof(T) <= sizeof(bits));
    std::memcpy(&bits, &value, sizeof(T));
    bits = device::shuffle(bits, lanes);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

template <class To, class From> inline To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To same;
    std::memcpy(&same, &value, sizeof(To));
    return same;
}
inline float __int_as_float(int bits) { return bits_as<float>(bits); }
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline double __longlong_as_double(long long bits) { return bits_as<double>(bits); }
inline float float_of_half(unsigned short bits) { return bits_as<_Float16>(bits); }
inline unsigned short half_of_float(float x) { return bits_as<unsigned short>(_Float16(x)); }

inline float exp(float x) { return __builtin_expf(x); }
inline double exp(double x) { return __builtin_exp(x); }
inline float fabs(float x) { return __builtin_fabsf(x); }
inline double fabs(double x) { return __builtin_fabs(x); }
inline float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
inline double fma(double x, double y, double z) { return __builtin_fma(x, y, z); }
inline float fmaxf(float x, float y) { return __builtin_fmaxf(x, y); }
inline double fmax(double x, double y) { return __builtin_fmax(x, y); }
inline float log(float x) { return __builtin_logf(x); }
inline double log(double x) { return __builtin_log(x); }
inline float log1p(float x) { return __builtin_log1pf(x); }
inline double log1p(double x) { return __builtin_log1p(x); }
inline float sqrt(float x) { return __builtin_sqrtf(x); }
inline double sqrt(double x) { return __builtin_sqrt(x); }
inline float tanh(float x) { return __builtin_tanhf(x); }
inline double tanh(double x) { return __builtin_tanh(x); }
using std::memcpy;
