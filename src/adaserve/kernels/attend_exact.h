// What attention computes between the choice of keys and the sum of what they give, for keys and values of type T, in float32:
// a score is one chain of fused multiply-adds over k, an output one chain over the keys that its row sees, in order.
#pragma once

#include <algorithm>

#include "simd.h"

constexpr int KEYS = 2 * W;  // keys scored at once
#if defined(__AVX__) && !defined(__AVX512F__)
constexpr int SCORE_ROWS = 4, VALUE_ROWS = 2;
#else
constexpr int SCORE_ROWS = 8, VALUE_ROWS = 6;
#endif
constexpr int64_t AHEAD = 24;  // values fetched so long before use
constexpr int SPAN = 4;        // vectors of a value row at once

// ---- transposition: W rows of W words become W columns

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAVE_SHUFFLE 1
#endif
#endif

#ifdef HAVE_SHUFFLE
template <int... I>
struct Lanes {};
template <int N, int... I>
struct Upto : Upto<N - 1, N - 1, I...> {};
template <int... I>
struct Upto<0, I...> {
    typedef Lanes<I...> type;
};

// Exchange the off-diagonal S x S blocks of two rows that lie S apart.
template <int S, int... I>
static inline void exchange(vuint& a, vuint& b, Lanes<I...>) {
    const vuint x = a, y = b;
    a = __builtin_shufflevector(x, y, ((I & S) ? W + I - S : I)...);
    b = __builtin_shufflevector(x, y, ((I & S) ? W + I : I + S)...);
}

template <int S>
static inline void exchange_all(vuint (&row)[W]) {
    UNROLL for (int i = 0; i < W; i++)
        if (!(i & S)) exchange<S>(row[i], row[i + S], typename Upto<W>::type());
}

static inline void transpose(vuint (&row)[W]) {
    if constexpr (W >= 16) exchange_all<8>(row);
    if constexpr (W >= 8) exchange_all<4>(row);
    exchange_all<2>(row);
    exchange_all<1>(row);
}
#else
static inline void transpose(vuint (&row)[W]) {
    uint32_t cell[W][W];
    std::memcpy(cell, row, sizeof cell);
    for (int i = 0; i < W; i++)
        for (int j = 0; j < i; j++) std::swap(cell[i][j], cell[j][i]);
    std::memcpy(row, cell, sizeof cell);
}
#endif

// columns[d][i] = rows[i][d] for KEYS rows of head_dim.
static void to_columns(const float* const* rows, int64_t head_dim, float* columns) {
    int64_t d = 0;
    for (; d + W <= head_dim; d += W)
        for (int g = 0; g < KEYS; g += W) {
            vuint cell[W];
            UNROLL for (int i = 0; i < W; i++) cell[i] = load_words(rows[g + i] + d);
            transpose(cell);
            UNROLL for (int i = 0; i < W; i++) store(columns + (d + i) * KEYS + g, (vfloat)cell[i]);
        }
    for (; d < head_dim; d++)
        for (int i = 0; i < KEYS; i++) columns[d * KEYS + i] = rows[i][d];
}

static void to_columns(const bf16* const* rows, int64_t head_dim, float* columns) {
    const vuint upper = vuint{} + 0xffff0000u;
    int64_t d = 0;
    for (; d + 2 * W <= head_dim; d += 2 * W)
        for (int g = 0; g < KEYS; g += W) {
            vuint cell[W];
            UNROLL for (int i = 0; i < W; i++) cell[i] = load_words(rows[g + i] + d);
            transpose(cell);
            UNROLL for (int i = 0; i < W; i++) {
                store(columns + (d + 2 * i) * KEYS + g, (vfloat)(cell[i] << 16));
                store(columns + (d + 2 * i + 1) * KEYS + g, (vfloat)(cell[i] & upper));
            }
        }
    for (; d < head_dim; d++)
        for (int i = 0; i < KEYS; i++) columns[d * KEYS + i] = bf16_to_float(rows[i][d]);
}

// ---- scores

template <int R>
static void score_tile(const float* q, int64_t head_dim, const float* columns, float* score, int64_t stride) {
    vfloat sum[R][2];
    UNROLL for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = vfloat{};
    for (int64_t d = 0; d < head_dim; d++) {
        const vfloat k0 = load(columns + d * KEYS), k1 = load(columns + d * KEYS + W);
        UNROLL for (int r = 0; r < R; r++) {
            const vfloat a = broadcast(q[r * head_dim + d]);
            sum[r][0] += a * k0;
            sum[r][1] += a * k1;
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        store(score + r * stride, sum[r][0]);
        store(score + r * stride + W, sum[r][1]);
    }
}

static void score_keys(const float* q, int64_t queries, int64_t head_dim, const float* columns, float* score, int64_t stride) {
    const int64_t tiles = (queries + SCORE_ROWS - 1) / SCORE_ROWS;
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t from = queries * t / tiles, to = queries * (t + 1) / tiles;
        const float* a = q + from * head_dim;
        float* s = score + from * stride;
        switch (to - from) {
#define CASE(R) case R: score_tile<R>(a, head_dim, columns, s, stride); break;
            CASE(1) CASE(2) CASE(3) CASE(4)
#if !defined(__AVX__) || defined(__AVX512F__)
            CASE(5) CASE(6) CASE(7) CASE(8)
#endif
#undef CASE
        }
    }
}

// ---- softmax: scores become weights (not yet divided by their sum); returns the sum

// The greatest score; behind the last one, a vector is filled with such as weigh nothing.
static float greatest(float* score, int64_t n) {
    for (int i = 0; i < W; i++) score[n + i] = -INFINITY;
    vfloat best = broadcast(-INFINITY);
    for (int64_t i = 0; i < n; i += W) {
        const vfloat s = load(score + i);
        best = s > best ? s : best;
    }
    return max_lanes(best);
}

static float exponentials(float* score, int64_t n) {
    const float top = greatest(score, n);
    vfloat sum = {};
    for (int64_t i = 0; i < n; i += W) {
        const vfloat e = exponential(load(score + i) - top);
        store(score + i, e);
        sum += e;
    }
    return sum_lanes(sum);
}

// ---- values: out[r] += sum over i of weight[r][i] * value[i], in order of i

template <int R, int N, class T>
static void value_tile(const float* weight, int64_t stride, const T* const* value, int64_t n, int64_t at, int64_t d, float* out,
                       int64_t head_dim) {
    vfloat sum[R][N];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < N; v++) sum[r][v] = load(out + r * head_dim + d + v * W);
    for (int64_t i = 0; i < n; i++) {
        const T* row = value[i] + at + d;
        vfloat x[N];
        UNROLL for (int b = 0; b < int(N * W * sizeof(T)); b += 64)
            __builtin_prefetch((const char*)(value[i + AHEAD] + at + d) + b, 0, 3);
        UNROLL for (int v = 0; v < N; v++) x[v] = load(row + v * W);
        UNROLL for (int r = 0; r < R; r++) {
            const vfloat a = broadcast(weight[r * stride + i]);
            UNROLL for (int v = 0; v < N; v++) sum[r][v] += a * x[v];
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < N; v++) store(out + r * head_dim + d + v * W, sum[r][v]);
}

template <int R, class T>
static void value_rows(const float* weight, int64_t stride, const T* const* value, int64_t n, int64_t at, float* out, int64_t head_dim) {
    int64_t d = 0;
    for (; d + SPAN * W <= head_dim; d += SPAN * W) value_tile<R, SPAN>(weight, stride, value, n, at, d, out, head_dim);
    for (; d + W <= head_dim; d += W) value_tile<R, 1>(weight, stride, value, n, at, d, out, head_dim);
    for (; d < head_dim; d++)
        for (int r = 0; r < R; r++) {
            float sum = out[r * head_dim + d];
            for (int64_t i = 0; i < n; i++) sum = std::fma(weight[r * stride + i], load_one(value[i] + at + d), sum);
            out[r * head_dim + d] = sum;
        }
}

template <class T>
static void add_values(const float* weight, int64_t stride, int64_t queries, const T* const* value, int64_t n, int64_t at, float* out,
                       int64_t head_dim) {
    if (n <= 0) return;
    const int64_t tiles = (queries + VALUE_ROWS - 1) / VALUE_ROWS;
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t from = queries * t / tiles, to = queries * (t + 1) / tiles;
        const float* w = weight + from * stride;
        float* o = out + from * head_dim;
        switch (to - from) {
#define CASE(R) case R: value_rows<R>(w, stride, value, n, at, o, head_dim); break;
            CASE(1) CASE(2)
#if !defined(__AVX__) || defined(__AVX512F__)
            CASE(3) CASE(4) CASE(5) CASE(6)
#endif
#undef CASE
        }
    }
}

// The steps as attention.cpp takes them.
template <class T>
struct Exact {
    typedef T Key;
    static constexpr int64_t STEP = 1;  // keys that are added together

    static int64_t query_width(int64_t head_dim) { return head_dim; }
    static int64_t out_width(int64_t head_dim) { return head_dim; }

    static void take_query(const float* from, int64_t head_dim, float scale, float* to) {
        for (int64_t i = 0; i < head_dim; i++) to[i] = from[i] * scale;
    }

    static void columns(const T* const* rows, int64_t head_dim, float* to) { to_columns(rows, head_dim, to); }

    static void scores(const float* q, int64_t queries, int64_t head_dim, const float* columns, float* score, int64_t stride) {
        score_keys(q, queries, head_dim, columns, score, stride);
    }

    static float weights(float* score, int64_t n) { return exponentials(score, n); }

    // Adds n values, whose weights stand from place `from` on.
    static void add(const float* weight, int64_t from, int64_t stride, int64_t queries, const T* const* value, int64_t n, int64_t at,
                    float* out, int64_t head_dim) {
        add_values(weight + from, stride, queries, value, n, at, out, head_dim);
    }

    static void finish(const float* from, float inverse, int64_t head_dim, float* to) {
        for (int64_t d = 0; d < head_dim; d++) to[d] = from[d] * inverse;
    }
};
