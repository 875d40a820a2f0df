// The likeliest tokens of every row of logits, and the log of the row's sum of exponentials.
#include "simd.h"

constexpr int64_t CHUNK = 16 * W;  // logits whose largest is remembered: only promising chunks are looked at again

// NaN counts as minus infinity everywhere.
static inline float possible(float x) { return x != x ? -INFINITY : x; }

static inline vfloat chunk_max(const float* x) {
    vfloat best[2] = {broadcast(-INFINITY), broadcast(-INFINITY)};
    UNROLL for (int i = 0; i < 16; i += 2) {
        const vfloat a = load(x + i * W), b = load(x + i * W + W);
        best[0] = a > best[0] ? a : best[0];
        best[1] = b > best[1] ? b : best[1];
    }
    return best[0] > best[1] ? best[0] : best[1];
}

// The `width` largest logits, largest first, ties to the lower id: a sorted list into which chunks in order of id are merged.
static void select(const float* x, int64_t n, int64_t width, int64_t* token, float* value) {
    int64_t count = 0;
    for (int64_t from = 0; from < n; from += CHUNK) {
        const int64_t to = from + CHUNK < n ? from + CHUNK : n;
        if (count == width && to - from == CHUNK && !(max_lanes(chunk_max(x + from)) > value[width - 1])) continue;
        for (int64_t i = from; i < to; i++) {
            const float v = possible(x[i]);
            if (count == width && !(v > value[width - 1])) continue;
            int64_t at = count < width ? count++ : width - 1;
            for (; at > 0 && v > value[at - 1]; at--) {
                value[at] = value[at - 1];
                token[at] = token[at - 1];
            }
            value[at] = v;
            token[at] = i;
        }
    }
}

// Sum of exp((x - top) * scale): float32 within a chunk, float64 across chunks.
static double exponential_sum(const float* x, int64_t n, float top, float scale) {
    double total = 0;
    int64_t from = 0;
    for (; from + CHUNK <= n; from += CHUNK) {
        vfloat sum[2] = {};
        UNROLL for (int i = 0; i < 16; i++) {
            const vfloat e = exponential((load(x + from + i * W) - top) * scale);
            sum[i % 2] += e == e ? e : vfloat{};
        }
        total += sum_lanes(sum[0] + sum[1]);
    }
    for (; from < n; from++) {
        const double e = std::exp(double((x[from] - top) * scale));
        total += e == e ? e : 0.0;
    }
    return total;
}

EXPORT void top_tokens(const float* logits, int64_t rows, int64_t vocabulary, const double* inverse_temperature, int64_t width,
                       int64_t* token, double* log_prob) {
    parallel(rows, [&](int64_t r) {
        const float* x = logits + r * vocabulary;
        float value[width];
        select(x, vocabulary, width, token + r * width, value);
        const float top = value[0];
        double total = 0;
        if (top == INFINITY) {  // infinite logits share all the probability
            for (int64_t i = 0; i < vocabulary; i++) total += x[i] == INFINITY;
        } else if (top > -INFINITY) {
            total = exponential_sum(x, vocabulary, top, float(inverse_temperature[r]));
        }
        for (int64_t j = 0; j < width; j++) {
            const double gap = value[j] == top ? 0.0 : (double(value[j]) - double(top)) * inverse_temperature[r];
            log_prob[r * width + j] = top > -INFINITY && value[j] > -INFINITY ? gap - std::log(total) : -INFINITY;
        }
    });
}

EXPORT void argmax(const float* logits, int64_t rows, int64_t vocabulary, int64_t* token) {
    parallel(rows, [&](int64_t r) {
        float value[1] = {};
        select(logits + r * vocabulary, vocabulary, 1, token + r, value);
    });
}
