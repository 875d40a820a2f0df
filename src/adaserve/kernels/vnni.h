// y = x W^T + b for weights in blocks of 32 along k, where x is rounded to blocks of 8 bits too: per row and block
//
//     x = code * scale        scale = greatest |x| / 127
//     sum of w x over a block = scale_w * scale * sum of code_w * code  +  offset_w * scale * sum of code
//
// The sums of products of codes are integers, so exact in any order; the blocks follow one another in order of k. So a row's
// result does not depend on its batch. Four products a lane and instruction, and weights need no more than a shift and a mask
// to be factors: this is as near to the memory's speed as a few rows come, and the fastest for many without a matrix unit
// (int8_tiles.h).
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

// What a block of a row has beside its codes: `sum` is scale * sum of codes, by which offsets are multiplied; `minus`, -128 * sum
// of codes, takes back the 128 that was added to the codes of bytes.
struct Side {
    float scale;
    float sum;
    int32_t minus;
};

// Some rows as factors: the block of row r at step s is number r * row + s * step.
struct Rows {
    const int8_t* code;  // 32 a block
    const Side* side;
    long row, step;
};

// The rows of a batch, in groups of `height` whose blocks of one step lie together: [rows / height][steps][height] blocks.
struct Batch {
    long height, steps;
    int8_t* code;
    Side* side;

    Batch(const float* x, long rows, long depth, long height) : height(height), steps(depth / DEPTH) {
        static thread_local std::vector<int8_t> codes;  // both grow to the largest batch
        static thread_local std::vector<Side> sides;
        const size_t blocks = (rows + height - 1) / height * height * steps;
        if (codes.size() < blocks * DEPTH) codes.resize(blocks * DEPTH);
        if (sides.size() < blocks) sides.resize(blocks);
        code = codes.data();
        side = sides.data();
        parallel_runs(rows, rows * depth > (1 << 14) ? PARTS : 1, [&](long r) {
            for (long s = 0; s < steps; s++) {
                const long block = number(r, s);
                round(x + r * depth + s * DEPTH, code + block * DEPTH, side[block]);
            }
        });
    }

    long number(long row, long step) const { return (row / height * steps + step) * height + row % height; }

    // From row `first` on: all, or what is left of its group where groups have more than one.
    Rows from(long first) const {
        const long block = number(first, 0);
        return {code + block * DEPTH, side + block, height == 1 ? steps : 1, height};
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

// By the instruction itself, which broadcasts from memory for nothing: the compiler makes two of it.
static inline __m512i multiply_add(__m512i sum, __m512i w, const int8_t* four) {
    typedef int32_t __attribute__((may_alias, aligned(1))) Four;
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*(const Four*)four));
    return sum;
}

// R rows times one panel: `total` of every row in a register through all of k.
template <class Format, int R>
static void tile(Rows x, long steps, const char* head, const char* codes, __mmask16 valid, __m512 bias, float* out, long stride) {
    __m512 total[R];
    UNROLL for (int r = 0; r < R; r++) total[r] = bias;
    for (long s = 0; s < steps; s++) {
        UNROLL for (int line = 0; line < Format::CODES; line += 64) _mm_prefetch(codes + AHEAD + line, _MM_HINT_T0);
        __m512i w[8];
        Format::load(codes, w);
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)head));
        const __m512 offset = Format::OFFSET ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(head + 32))) : scale;
        UNROLL for (int r = 0; r < R; r++) {
            const long block = r * x.row + s * x.step;
            const int8_t* q = x.code + block * DEPTH;
            const Side& of = x.side[block];
            __m512i sum = Format::OFFSET ? _mm512_setzero_si512() : _mm512_set1_epi32(of.minus);
            UNROLL for (int g = 0; g < 8; g++) sum = multiply_add(sum, w[g], q + 4 * g);
            total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale, _mm512_set1_ps(of.scale)), total[r]);
            if (Format::OFFSET) total[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(of.sum), total[r]);
        }
        head += Format::HEAD;
        codes += Format::CODES;
    }
    UNROLL for (int r = 0; r < R; r++) _mm512_mask_storeu_ps(out + r * stride, valid, total[r]);
}

template <class Format>
static void rows_times_panel(long rows, Rows x, long steps, const char* head, const char* codes, __mmask16 valid, __m512 bias,
                             float* out, long stride) {
    switch (rows) {
#define CASE(R) \
    case R: return tile<Format, R>(x, steps, head, codes, valid, bias, out, stride);
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
    }
}

template <class Format>
static void multiply(const float* x, long rows, long depth, const char* packed, long outputs, const float* bias, float* out) {
    if (rows == 0) return;
    const Batch batch(x, rows, depth, 1);
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
                rows_times_panel<Format>(high - low, batch.from(low), steps, head, head + heads, valid, from, out + low * outputs + p * W,
                                         outputs);
            }
        }
    });
}

}  // namespace vnni
#endif
