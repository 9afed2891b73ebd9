// The largest logits of each row and their classes.
#include "rows.cuh"

using uint64 = unsigned long long;

constexpr int DIGITS = 256, BITS = 8;  // of a key

// A number with the order of the logits: NaN is the largest, and both zeros are the same.
__device__ inline uint64 key_of(float x) {
    if (x != x) return 0xffffffffull;
    unsigned bits = x == 0 ? 0 : __float_as_int(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline uint64 key_of(double x) {
    if (x != x) return ~0ull;
    uint64 bits = 0;
    if (x != 0) memcpy(&bits, &x, sizeof(bits));
    return bits >> 63 ? ~bits : bits | 0x8000000000000000ull;
}

// The first classes of a row in the order of their logits and, of equal ones, of their numbers, are those whose pair of
// keys is not below `logit` and `place`, as far as these are known: up to the bits of the masks.
struct Bound {
    uint64 logit, logit_mask, place, place_mask;

    __device__ bool is_at(uint64 key, uint64 rest) const {
        return (key & logit_mask) == logit && (rest & place_mask) == place;
    }
    __device__ bool is_within(uint64 key, uint64 rest) const {
        return (key & logit_mask) > logit || ((key & logit_mask) == logit && (rest & place_mask) >= place);
    }
};

// Whether class i comes before class j.
template <class A> __device__ inline bool precedes(const A* row, int64 i, int64 j) {
    uint64 a = key_of(row[i]), b = key_of(row[j]);
    return a > b || (a == b && i < j);
}

// Finds the bound of the k first classes, 8 bits at a time: counts the classes at the bound by their next digit. Once all
// of these classes are among the first, the other bits do not matter.
template <class A> __device__ inline Bound bound_of(const A* row, int64 classes, int64 k, unsigned* counts) {
    Bound bound{};
    int64 wanted = k;  // of the classes at the bound
    int place_bits = 0;
    while (place_bits < 64 && (classes - 1) >> place_bits) place_bits += BITS;
    constexpr int LOGIT_BITS = 8 * sizeof(A);
    for (int left = LOGIT_BITS + place_bits - BITS; left >= 0; left -= BITS) {
        bool is_logit = left >= place_bits;
        int shift = is_logit ? left - place_bits : left;
        for (int i = threadIdx.x; i < DIGITS; i += blockDim.x) counts[i] = 0;
        __syncthreads();
        for (int64 j = threadIdx.x; j < classes; j += blockDim.x) {
            uint64 key = key_of(row[j]), rest = classes - 1 - j;
            if (bound.is_at(key, rest)) atomicAdd(counts + ((is_logit ? key : rest) >> shift) % DIGITS, 1u);
        }
        __syncthreads();
        int digit = DIGITS - 1;
        for (; wanted > counts[digit]; digit--) wanted -= counts[digit];
        bool is_found = wanted == counts[digit];
        (is_logit ? bound.logit : bound.place) |= uint64(digit) << shift;
        (is_logit ? bound.logit_mask : bound.place_mask) |= uint64(DIGITS - 1) << shift;
        __syncthreads();  // before the counts are overwritten
        if (is_found) break;
    }
    return bound;
}

// Sorts classes by comparing pairs that do not depend on the data, as K. E. Batcher, "Sorting networks and their
// applications" (1968), with the first step of each merge mirrored: so the classes may have any number.
template <class A> __device__ inline void sort(const A* row, int64 k, int64* found) {
    for (int64 size = 2; size < 2 * k; size *= 2)
        for (int64 step = size / 2; step; step /= 2) {
            bool is_first = step == size / 2;
            for (int64 i = threadIdx.x; i < k; i += blockDim.x) {
                int64 j = is_first ? i ^ (size - 1) : i ^ step;
                if (j <= i || j >= k) continue;
                int64 a = found[i], b = found[j];
                if (precedes(row, b, a)) {
                    found[i] = b;
                    found[j] = a;
                }
            }
            __syncthreads();
        }
}

// A block for each row.
extern "C" __global__ void __launch_bounds__(256, 2)
    largest(int64 rows, int64 classes, int64 k, const Compute<REAL>* z, REAL* values, int64* indices) {
    __shared__ unsigned counts[DIGITS];
    __shared__ unsigned count;
    for (int64 i = blockIdx.x; i < rows; i += gridDim.x) {
        const Compute<REAL>* row = z + i * classes;
        int64* found = indices + i * k;
        Bound bound = bound_of(row, classes, k, counts);
        if (threadIdx.x == 0) count = 0;
        __syncthreads();
        for (int64 j = threadIdx.x; j < classes; j += blockDim.x)
            if (bound.is_within(key_of(row[j]), classes - 1 - j)) found[atomicAdd(&count, 1u)] = j;
        __syncthreads();
        sort(row, k, found);
        for (int64 n = threadIdx.x; n < k; n += blockDim.x) values[i * k + n] = narrow<REAL>(row[found[n]]);
        __syncthreads();  // before the count is overwritten
    }
}
