// The floating types of arrays, and the types that kernels compute in.
//
// `half` and `bfloat16` are bits here, converted by one instruction each way, so that no header of CUDA is needed to
// compile: wheels of CuPy do not contain them. NVIDIA's `__half` and `__nv_bfloat16` have the same bits.
#pragma once

using int64 = long long;

struct half {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
};

// 16-bit numbers are computed in float.
template <class T> struct ComputedIn {
    using type = float;
};
template <> struct ComputedIn<double> {
    using type = double;
};
template <class T> using Compute = typename ComputedIn<T>::type;

template <class A> __device__ inline A infinity();
template <> __device__ inline float infinity<float>() { return __int_as_float(0x7f800000); }
template <> __device__ inline double infinity<double>() { return __longlong_as_double(0x7ff0000000000000ll); }

template <class A> __device__ inline A not_a_number() { return A(0) * infinity<A>(); }

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bfloat16 x) { return __int_as_float(int(x.bits) << 16); }
__device__ inline float widen(half x) {
#ifdef __CUDA_ARCH__
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
#else
    return float_of_half(x.bits);
#endif
}

// Rounded to the nearest number, of two to the even one.
template <class T> __device__ inline T narrow(Compute<T> x);
template <> __device__ inline double narrow<double>(double x) { return x; }
template <> __device__ inline float narrow<float>(float x) { return x; }
template <> __device__ inline bfloat16 narrow<bfloat16>(float x) {
#if __CUDA_ARCH__ >= 800
    bfloat16 narrow;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
    return narrow;
#else
    unsigned bits = __float_as_int(x);
    if (x != x) return {(unsigned short)(bits >> 16 | 0x40)};  // rounding could turn NaN into infinity
    return {(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}
template <> __device__ inline half narrow<half>(float x) {
#ifdef __CUDA_ARCH__
    half narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
    return narrow;
#else
    return {half_of_float(x)};
#endif
}

// W contiguous elements. If the macro ALIGNED is 1, vectors of 16 bytes start at a multiple of 16 and are read and
// written in one access. Each thread takes the same elements in either case, so that results are the same.
template <class T, int W> struct Vector {
    T element[W];
};

template <int W, class T> __device__ inline Vector<T, W> read(const T* x) {
    Vector<T, W> value;
    if constexpr (ALIGNED && sizeof(value) == sizeof(uint4)) {
        uint4 bits = *reinterpret_cast<const uint4*>(x);
        memcpy(&value, &bits, sizeof(bits));
    } else {
        for (int i = 0; i < W; i++) value.element[i] = x[i];
    }
    return value;
}

template <int W, class T> __device__ inline void write(T* x, const Vector<T, W>& value) {
    if constexpr (ALIGNED && sizeof(value) == sizeof(uint4)) {
        uint4 bits;
        memcpy(&bits, &value, sizeof(bits));
#ifdef __CUDA_ARCH__
        // Without this, the compiler splits the 16 bytes and writes them element by element.
        asm volatile("{ .reg .u64 to; cvta.to.global.u64 to, %0; st.global.v4.b32 [to], {%1, %2, %3, %4}; }"
                     :
                     : "l"(x), "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w)
                     : "memory");
#else
        *reinterpret_cast<uint4*>(x) = bits;
#endif
    } else {
        for (int i = 0; i < W; i++) x[i] = value.element[i];
    }
}
