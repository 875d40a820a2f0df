// y = x W^T + b for weights in blocks of 32 along k, where x is rounded to blocks of 8 bits too: per row and block
//
//     x = code * scale        scale = greatest |x| / 127
//     sum of w x over a block = scale_w * scale * sum of code_w * code  +  offset_w * scale * sum of code
//
// The sums of products of codes are integers, so exact in any order; the blocks follow one another in order of k. So a row's
// result does not depend on its batch. Four products a lane and instruction, and weights need no more than a shift and a mask
// to be factors: this is as near to the memory's speed as a few rows come, and the fastest for many.
//
// Packed weights: panels of 16 outputs, one a lane; of each all scales, then all codes:
//     Nibbles   [K / 32][scale 16 | offset 16] float16, [K / 32][4][16][4] bytes: k and k + 16 in the low and the high half
//     Bytes     [K / 32][scale 16] float16 padded to a cache line, [K / 32][8][16][4] bytes: codes + 128
#pragma once

#include "panel.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define ADASERVE_VNNI 1

#include <immintrin.h>

#include <vector>

namespace vnni {

constexpr long DEPTH = 32;      // k's of a block
constexpr int HEIGHT = 12;      // rows of a tile: as many sums beside eight vectors of weights
constexpr long AHEAD = 4096;    // bytes of codes fetched so long before use
constexpr long SHARED = 4;      // panels that share one reading of a tile's rows

struct Nibbles {
    static constexpr long HEAD = 64, CODES = 256;
    static constexpr bool OFFSET = true;

    static inline void load(const char* codes, __m512i (&w)[8]) {
        const __m512i low = _mm512_set1_epi8(15);
        UNROLL for (int g = 0; g < 4; g++) {
            const __m512i both = _mm512_loadu_si512(codes + 64 * g);
            w[g] = _mm512_and_si512(both, low);
            w[g + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        }
    }
};

struct Bytes {
    static constexpr long HEAD = 32, CODES = 512;
    static constexpr bool OFFSET = false;

    static inline void load(const char* codes, __m512i (&w)[8]) {
        UNROLL for (int g = 0; g < 8; g++) w[g] = _mm512_loadu_si512(codes + 64 * g);
    }
};

// The rows as factors. `sum` is scale * sum of codes, by which offsets are multiplied; `minus`, -128 * sum of codes, takes back
// the 128 that was added to the codes of bytes.
struct Batch {
    struct Side {
        float scale;
        float sum;
        int32_t minus;
    };

    long rows, steps;
    int8_t* code;  // [rows][steps][32]
    Side* side;    // [rows][steps]

    Batch(const float* x, long rows, long depth) : rows(rows), steps(depth / DEPTH) {
        static thread_local std::vector<int8_t> codes;  // both grow to the largest batch
        static thread_local std::vector<Side> sides;
        if (codes.size() < size_t(rows * depth)) codes.resize(rows * depth);
        if (sides.size() < size_t(rows * steps)) sides.resize(rows * steps);
        code = codes.data();
        side = sides.data();
        parallel_runs(rows, rows * depth > (1 << 14) ? PARTS : 1, [&](long r) {
            for (long s = 0; s < steps; s++) round(x + r * depth + s * DEPTH, code + r * depth + s * DEPTH, side[r * steps + s]);
        });
    }

    // Called with 32 numbers of a row.
    static void round(const float* x, int8_t* code, Side& side) {
        const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        // A maximum may step over NaN; what is not finite makes the whole row NaN by its scale.
        const bool sick = _mm512_cmp_ps_mask(_mm512_sub_ps(a, a), _mm512_sub_ps(b, b), _CMP_UNORD_Q) != 0;
        const __m512 inverse = _mm512_set1_ps(most > 1e-30f ? 127.0f / most : 0.0f);
        const __m512i c = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), d = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
        _mm_storeu_si128((__m128i*)code, _mm512_cvtsepi32_epi8(c));
        _mm_storeu_si128((__m128i*)(code + 16), _mm512_cvtsepi32_epi8(d));
        const int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(c, d));
        side.scale = sick ? NAN : most / 127.0f;
        side.sum = side.scale * float(sum);
        side.minus = int32_t(-128u * uint32_t(sum));
    }
};

// R rows times one panel: `total` of every row in a register through all of k.
template <class Format, int R>
static void tile(const int8_t* code, const Batch::Side* side, long steps, const char* head, const char* codes, __mmask16 valid,
                 __m512 bias, float* out, long stride) {
    __m512 total[R];
    UNROLL for (int r = 0; r < R; r++) total[r] = bias;
    for (long s = 0; s < steps; s++) {
        UNROLL for (int line = 0; line < Format::CODES; line += 64) _mm_prefetch(codes + AHEAD + line, _MM_HINT_T0);
        __m512i w[8];
        Format::load(codes, w);
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)head));
        const __m512 offset = Format::OFFSET ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(head + 32))) : scale;
        UNROLL for (int r = 0; r < R; r++) {
            const int8_t* q = code + (r * steps + s) * DEPTH;
            const Batch::Side& of = side[r * steps + s];
            __m512i sum = Format::OFFSET ? _mm512_setzero_si512() : _mm512_set1_epi32(of.minus);
            UNROLL for (int g = 0; g < 8; g++) {
                int32_t four;
                std::memcpy(&four, q + 4 * g, 4);
                sum = _mm512_dpbusd_epi32(sum, w[g], _mm512_set1_epi32(four));
            }
            total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale, _mm512_set1_ps(of.scale)), total[r]);
            if (Format::OFFSET) total[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(of.sum), total[r]);
        }
        head += Format::HEAD;
        codes += Format::CODES;
    }
    UNROLL for (int r = 0; r < R; r++) _mm512_mask_storeu_ps(out + r * stride, valid, total[r]);
}

template <class Format>
static void rows_times_panel(long rows, const int8_t* code, const Batch::Side* side, long steps, const char* head, const char* codes,
                             __mmask16 valid, __m512 bias, float* out, long stride) {
    switch (rows) {
#define CASE(R) \
    case R: return tile<Format, R>(code, side, steps, head, codes, valid, bias, out, stride);
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
    }
}

template <class Format>
static void multiply(const float* x, long rows, long depth, const char* packed, long outputs, const float* bias, float* out) {
    if (rows == 0) return;
    const Batch batch(x, rows, depth);
    const long steps = batch.steps, panels = (outputs + W - 1) / W, tiles = (rows + HEIGHT - 1) / HEIGHT;
    const long heads = (steps * Format::HEAD + 63) / 64 * 64, bytes = heads + steps * Format::CODES;
    const long runs = (panels + SHARED - 1) / SHARED;
    parallel_runs(runs, rows * outputs * depth < ALONE ? 1 : PARTS, [&](long run) {
        const long past = panels < (run + 1) * SHARED ? panels : (run + 1) * SHARED;
        for (long t = 0; t < tiles; t++) {  // tiles of nearly equal height
            const long low = rows * t / tiles, high = rows * (t + 1) / tiles;
            for (long p = run * SHARED; p < past; p++) {
                const char* head = packed + p * bytes;
                const __mmask16 valid = outputs - p * W >= W ? 0xffff : __mmask16((1u << (outputs - p * W)) - 1);
                const __m512 from = bias ? _mm512_maskz_loadu_ps(valid, bias + p * W) : _mm512_setzero_ps();
                rows_times_panel<Format>(high - low, batch.code + low * depth, batch.side + low * steps, steps, head, head + heads, valid,
                                         from, out + low * outputs + p * W, outputs);
            }
        }
    });
}

}  // namespace vnni
#endif
