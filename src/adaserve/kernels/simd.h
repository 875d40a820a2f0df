// Vectors of the machine's own width through compiler vector extensions: one source for AVX-512, AVX2, NEON and the rest.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "parallel.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#define ADASERVE_WIDTH 16
#elif defined(__AVX__)
#define ADASERVE_WIDTH 8
#else
#define ADASERVE_WIDTH 4
#endif

// Vectors that the compiler must keep in registers: unroll every loop over them completely.
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

constexpr int W = ADASERVE_WIDTH;  // floats a vector

typedef float vfloat __attribute__((vector_size(4 * ADASERVE_WIDTH)));
typedef int32_t vint __attribute__((vector_size(4 * ADASERVE_WIDTH)));
typedef uint32_t vuint __attribute__((vector_size(4 * ADASERVE_WIDTH)));
typedef uint16_t vshort __attribute__((vector_size(2 * ADASERVE_WIDTH)));
typedef uint16_t bf16;

static inline vfloat load(const float* p) {
    vfloat v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static inline vuint load_words(const void* p) {
    vuint v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(float* p, vfloat v) { std::memcpy(p, &v, sizeof v); }

static inline vfloat broadcast(float x) { return x - vfloat{}; }

static inline float bf16_to_float(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

static inline vfloat load(const bf16* p) {
    vshort half;
    std::memcpy(&half, p, sizeof half);
    return (vfloat)(__builtin_convertvector(half, vuint) << 16);
}

// Round to nearest, ties to even; NaN stays NaN.
static inline bf16 float_to_bf16(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if (f != f) return bf16((bits >> 16) | 0x40);
    return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline vshort float_to_bf16(vfloat v) {
    vuint bits = (vuint)v;
    vuint rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vuint nan = (bits >> 16) | 0x40;
    vuint picked = (v != v) ? nan : rounded;
    return __builtin_convertvector(picked, vshort);
}

static inline void store(bf16* p, vfloat v) {
    vshort half = float_to_bf16(v);
    std::memcpy(p, &half, sizeof half);
}

static inline float load_one(const float* p) { return *p; }
static inline float load_one(const bf16* p) { return bf16_to_float(*p); }
static inline void store_one(float* p, float x) { *p = x; }
static inline void store_one(bf16* p, float x) { *p = float_to_bf16(x); }

// Sum of the lanes, always by the same tree.
static inline float sum_lanes(vfloat v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);  // the same tree
#endif
    float lane[W];
    std::memcpy(lane, &v, sizeof v);
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

static inline float max_lanes(vfloat v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#endif
    float lane[W];
    std::memcpy(lane, &v, sizeof v);
    float best = lane[0];
    for (int i = 1; i < W; i++) best = lane[i] > best ? lane[i] : best;
    return best;
}

// e^x to about one unit in the last place; results below the smallest normal number are 0, NaN stays NaN.
static inline vfloat exponential(vfloat x) {
    const vfloat magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    vfloat low = broadcast(-87.33654f), high = broadcast(88.72283f);
    vfloat t = x > high ? high : x;
    t = t < low ? low : t;
    vfloat shifted = t * 1.44269504f + magic;
    vfloat n = shifted - magic;
    vfloat r = t - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vfloat p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // 2^n in two factors, since n may be 128.
    vint whole = (vint)shifted - (vint)magic;
    vint half = whole >> 1;
    vfloat scale = (vfloat)((half + 127) << 23), rest = (vfloat)((whole - half + 127) << 23);
    vfloat y = p * scale * rest;
    y = x < low ? vfloat{} : y;
    y = x > high ? broadcast(INFINITY) : y;
    return x != x ? x : y;
}
