// Weights that stay in blocks of 32 along k, as GGUF files hold them, and become bfloat16 where they are multiplied:
//     weight = code * scale + offset     in float32, where code * scale is exact, then rounded to bfloat16
// so a product cannot tell them from bfloat16 weights, and memory gives a third or half of the bytes.
//
// Packed for 32 k's of a panel, a *step*; scales and offsets are float16:
//     Nibbles   scale [C] | offset [C] | code [C / 4][32] words of 16 bits: a word holds four outputs' codes for one k
//     Bytes     scale [C] | padding to a cache line | code [C][32] bytes
// Expanded: [C][32] bfloat16, of which 16 outputs are one tile of AMX.
#pragma once

#include "panel.h"
#include "transpose.h"

constexpr int DEEP = 32;  // k's of a step

#if defined(__AVX512BW__)

// 32 floats to bfloat16. The instruction turns subnormal results into 0; weights, as multiples of 2^-24, cannot be any.
static inline __m512i to_bf16(__m512 low, __m512 high) {
#if defined(__AVX512BF16__)
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
#else
    const __m256i a = (__m256i)float_to_bf16((vfloat)low), b = (__m256i)float_to_bf16((vfloat)high);
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
#endif
}

// Through memory, because loads broadcast for nothing, while taking lanes of a register costs shuffles, which expansion is full
// of; the compiler would prefer the register, so it must not know what is in memory.
static inline void half_to_float(const char* from, float (&to)[W]) {
    _mm512_store_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)));
    asm volatile("" : "+m"(to));
}

struct Nibbles {
    static constexpr long BYTES = C * (2 + 2 + DEEP / 2);

    // Outputs v W to v W + W - 1 of a step. A code is an index into its block's 16 values, of which bfloat16 needs half a vector:
    // both halves hold them, so that the instruction's fifth index bit, which belongs to the next code, does not matter.
    static inline void expand(const char* step, int v, bf16* to) {
        alignas(64) float scale[W], offset[W];
        half_to_float(step + 2 * v * W, scale);
        half_to_float(step + 2 * (C + v * W), offset);
        const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (int o = 0; o < W; o += 4) {
            const __m512i words = _mm512_loadu_si512(step + 4 * C + (v * W + o) * DEEP / 2);
            UNROLL for (int i = 0; i < 4; i++) {
                const __m512 value = _mm512_fmadd_ps(codes, _mm512_set1_ps(scale[o + i]), _mm512_set1_ps(offset[o + i]));
                const __m512i index = _mm512_srli_epi16(words, 4 * i);
                _mm512_store_si512(to + (v * W + o + i) * DEEP, _mm512_permutexvar_epi16(index, to_bf16(value, value)));
            }
        }
    }
};

struct Bytes {
    static constexpr long HEAD = (C * 2 + 63) / 64 * 64;
    static constexpr long BYTES = HEAD + C * DEEP;

    static inline void expand(const char* step, int v, bf16* to) {
        alignas(64) float scale[W];
        half_to_float(step + 2 * v * W, scale);
        for (int o = 0; o < W; o++) {
            const __m512 factor = _mm512_set1_ps(scale[o]);
            __m512 value[2];
            UNROLL for (int i = 0; i < 2; i++) {
                const __m128i codes = _mm_loadu_si128((const __m128i*)(step + HEAD + (v * W + o) * DEEP + i * W));
                value[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), factor);
            }
            _mm512_store_si512(to + (v * W + o) * DEEP, to_bf16(value[0], value[1]));
        }
    }
};

#endif
