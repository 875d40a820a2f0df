// What attention.cpp needs of arithmetic, by the processor's own step over pairs of bfloat16 numbers: queries and weights are
// rounded to bfloat16, as keys and values are already; sums are float32.
//
//     score    one chain over pairs of k                                    query, key         [K / 2][2]
//     output   one chain over pairs of the keys that the row sees, in order     weight, value      [n / 2][2], the last filled up by 0
//
// The weights' own sum is that of the rounded ones, so that values that are all alike come out as they went in.
#pragma once

#include "attend_exact.h"
#include "transpose.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define ADASERVE_PAIRS 1

namespace pairs {

constexpr int64_t DEEP = 32;  // bfloat16 numbers of a vector

static inline __m512bh word(const float* p) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}

static inline __m512i load_upto(const bf16* p, int64_t count) {
    return count >= DEEP ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16((1u << count) - 1, p);
}

// R queries times KEYS keys; a query is `pairs` words, and so is a column of keys.
template <int R>
static void score_tile(const float* q, int64_t pairs, const float* columns, float* score, int64_t stride) {
    __m512 sum[R][2];
    UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t j = 0; j < pairs; j++) {
        const __m512bh k0 = (__m512bh)load_words(columns + j * KEYS), k1 = (__m512bh)load_words(columns + j * KEYS + W);
        UNROLL for (int r = 0; r < R; r++) {
            const __m512bh a = word(q + r * pairs + j);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], a, k0);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], a, k1);
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < 2; v++) _mm512_storeu_ps(score + r * stride + v * W, sum[r][v]);
}

// R queries' sums over `count` pairs of values, N vectors of DEEP numbers from d on, of which the last may be cut to `width`. Two
// values interleave within quarters of a vector, and so do the sums: first its lower, then its upper fours of every eight.
template <int R, int N>
static void value_tile(const float* weight, int64_t stride, const bf16* const* value, int64_t count, int64_t at, int64_t width, float* out,
                       int64_t out_width) {
    __m512 sum[R][2 * N];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < 2 * N; v++) sum[r][v] = _mm512_loadu_ps(out + r * out_width + v * W);
    for (int64_t i = 0; i < count; i++) {
        const bf16 *first = value[2 * i] + at, *second = value[2 * i + 1] + at;
        UNROLL for (int v = 0; v < N; v++) {
            __builtin_prefetch(value[2 * i + AHEAD] + at + v * DEEP, 0, 3);
            __builtin_prefetch(value[2 * i + 1 + AHEAD] + at + v * DEEP, 0, 3);
        }
        __m512bh x[2 * N];
        UNROLL for (int v = 0; v < N; v++) {
            const __m512i a = load_upto(first + v * DEEP, width - v * DEEP), b = load_upto(second + v * DEEP, width - v * DEEP);
            x[2 * v] = (__m512bh)_mm512_unpacklo_epi16(a, b);
            x[2 * v + 1] = (__m512bh)_mm512_unpackhi_epi16(a, b);
        }
        UNROLL for (int r = 0; r < R; r++) {
            const __m512bh a = word(weight + r * stride + i);
            UNROLL for (int v = 0; v < 2 * N; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], a, x[v]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < 2 * N; v++) _mm512_storeu_ps(out + r * out_width + v * W, sum[r][v]);
}

template <int R>
static void value_rows(const float* weight, int64_t stride, const bf16* const* value, int64_t count, int64_t at, float* out,
                       int64_t head_dim, int64_t out_width) {
    int64_t d = 0;
    for (; d + 2 * DEEP <= head_dim; d += 2 * DEEP)
        value_tile<R, 2>(weight, stride, value, count, at + d, 2 * DEEP, out + d, out_width);
    for (; d < head_dim; d += DEEP) value_tile<R, 1>(weight, stride, value, count, at + d, head_dim - d, out + d, out_width);
}

}  // namespace pairs

// The steps as attention.cpp takes them. Queries are words in place of floats, and so are weights once they are made.
struct Pairs {
    typedef bf16 Key;
    static constexpr int64_t STEP = 2;

    static int64_t query_width(int64_t head_dim) { return (head_dim + 1) / 2; }
    static int64_t out_width(int64_t head_dim) { return (head_dim + pairs::DEEP - 1) / pairs::DEEP * pairs::DEEP; }

    static void take_query(const float* from, int64_t head_dim, float scale, float* to) {
        for (int64_t d = 0; d < head_dim; d += W) {
            const int64_t left = std::min<int64_t>(head_dim - d, W);
            const __m512 x = _mm512_maskz_loadu_ps(__mmask16((1u << left) - 1), from + d);
            const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(x, _mm512_set1_ps(scale)));
            _mm256_mask_storeu_epi16((bf16*)to + d, __mmask16((1u << (left + left % 2)) - 1), rounded);
        }
    }

    static void columns(const bf16* const* rows, int64_t head_dim, float* to) {
        for (int64_t d = 0; d < head_dim; d += pairs::DEEP)
            for (int g = 0; g < KEYS; g += W) {
                const int64_t left = head_dim - d;
                __m512i cell[W];
                if (left >= pairs::DEEP) {
                    UNROLL for (int i = 0; i < W; i++) cell[i] = _mm512_loadu_si512(rows[g + i] + d);
                } else {
                    UNROLL for (int i = 0; i < W; i++) cell[i] = pairs::load_upto(rows[g + i] + d, left);
                }
                transpose(cell);
                for (int64_t i = 0; i < std::min<int64_t>((left + 1) / 2, W); i++)
                    _mm512_storeu_si512(to + (d / 2 + i) * KEYS + g, cell[i]);
            }
    }

    static void scores(const float* q, int64_t queries, int64_t head_dim, const float* columns, float* score, int64_t stride) {
        const int64_t tiles = (queries + SCORE_ROWS - 1) / SCORE_ROWS, width = query_width(head_dim);
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t from = queries * t / tiles, to = queries * (t + 1) / tiles;
            switch (to - from) {
#define CASE(R) case R: pairs::score_tile<R>(q + from * width, width, columns, score + from * stride, stride); break;
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
            }
        }
    }

    static float weights(float* score, int64_t n) {
        const float top = greatest(score, n);
        vfloat sum = {};
        for (int64_t i = 0; i < n; i += W) {
            const __m256i rounded = (__m256i)_mm512_cvtneps_pbh((__m512)exponential(load(score + i) - top));
            _mm256_storeu_si256((__m256i*)((bf16*)score + i), rounded);  // behind what is still to be read
            sum += (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16);
        }
        return sum_lanes(sum);
    }

    // n is odd at the end of a row alone; then the list names some value once more, whose weight is 0.
    static void add(const float* weight, int64_t from, int64_t stride, int64_t queries, const bf16* const* value, int64_t n, int64_t at,
                    float* out, int64_t head_dim) {
        const int64_t count = (n + 1) / 2, width = out_width(head_dim), tiles = (queries + VALUE_ROWS - 1) / VALUE_ROWS;
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t low = queries * t / tiles, high = queries * (t + 1) / tiles;
            const float* w = weight + low * stride + from / 2;
            switch (high - low) {
#define CASE(R) case R: pairs::value_rows<R>(w, stride, value, count, at, out + low * width, head_dim, width); break;
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#undef CASE
            }
        }
    }

    static void finish(const float* from, float inverse, int64_t head_dim, float* to) {
        const __m512i lower = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
        for (int64_t d = 0; d < head_dim; d += pairs::DEEP) {
            const uint32_t valid = head_dim - d >= pairs::DEEP ? ~0u : (1u << (head_dim - d)) - 1;
            const __m512 fours = _mm512_loadu_ps(from + d), others = _mm512_loadu_ps(from + d + W), factor = _mm512_set1_ps(inverse);
            _mm512_mask_storeu_ps(to + d, __mmask16(valid), _mm512_mul_ps(_mm512_permutex2var_ps(fours, lower, others), factor));
            _mm512_mask_storeu_ps(to + d + W, __mmask16(valid >> W), _mm512_mul_ps(_mm512_permutex2var_ps(fours, upper, others), factor));
        }
    }
};
#endif
