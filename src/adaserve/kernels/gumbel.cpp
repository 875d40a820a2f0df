// Gumbel-max over a row of logits: argmax of logit + temperature * g(key, token), scores in double.
//
// The noise of runtime/noise.py costs two logarithms a token, and nearly all tokens have no chance to win. So bound first:
//
//     w = 1 - u, and -log(u) >= w, so g = -log(-log(u)) <= -log(w)
//     t = the top 24 bits of the complemented hash, so w >= t / 2^24
//     log2(t) >= (bits of float(t)) / 2^23 - 127, because log2(1 + m) >= m on [0, 1]
//
// which is a conversion, a subtraction and a product in float32, and at most 0.06 too high for tokens that matter. Only where
// logit + T * bound reaches the best score so far are the two logarithms taken: a dozen times a row. The bound belongs to the
// key alone, so neighbouring rows of one key, the nodes of one depth of a tree, share it.
//
// The logarithms of this library and of torch may differ in the last place. A row whose two best scores are so close that this
// could matter is reported, and the caller draws it again with the twin.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr uint64_t STRIDE = 0x9E3779B97F4A7C15ull;
constexpr int64_t BLOCK = 512;  // tokens whose bounds stay in the first-level cache
constexpr int64_t GROUP = 64;   // rows that share bounds
constexpr double CLOSE = 1e-10;  // relative to the scores' size

inline uint64_t mix(uint64_t word) {
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9ull;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EBull;
    return word ^ (word >> 31);
}

inline double gumbel(uint64_t key, int64_t token) {
    const uint64_t bits = mix(key + static_cast<uint64_t>(token + 1) * STRIDE) >> 12;
    const double u = static_cast<double>(2 * bits + 1) * 0x1p-53;
    return -std::log(-std::log(u));
}

void bound_block(uint64_t key, int64_t first, int64_t count, float* bound) {
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t hash = mix(key + static_cast<uint64_t>(first + i + 1) * STRIDE);
        const float tail = static_cast<float>(static_cast<int32_t>(~hash >> 40));
        int32_t bits;
        std::memcpy(&bits, &tail, sizeof bits);
        const float log2_tail = static_cast<float>(bits) * 0x1p-23f - 127.0f;
        bound[i] = (24.0f - log2_tail) * 0.693148f + 1e-4f;  // rounded up: ln 2 = 0.6931472
    }
}

struct Best {
    double score = -std::numeric_limits<double>::infinity();
    double second = -std::numeric_limits<double>::infinity();
    int64_t token = 0;
    bool nan = false;

    void offer(double candidate, int64_t id) {
        if (candidate > score) {
            second = score;
            score = candidate;
            token = id;
        } else if (candidate > second) {
            second = candidate;
        }
    }
    bool close() const { return score - second <= CLOSE * (1.0 + std::fabs(score)); }
};

template <typename Logit>
void scan_block(const Logit* logit, const float* bound, double temperature, uint64_t key, int64_t first, int64_t count,
                Best& best) {
    const float scale = static_cast<float>(temperature);
    // float32 rounds the bound by less than this near the best score.
    const double slack = 1e-6 * (std::fabs(best.score) + 128.0 * temperature);
    const float reach = best.score > -std::numeric_limits<double>::infinity()
                            ? static_cast<float>(best.score - slack)
                            : -std::numeric_limits<float>::infinity();
    int32_t odd = 0, hit = 0;
    for (int64_t i = 0; i < count; ++i) {
        const float value = static_cast<float>(logit[i]);
        const float score = value + scale * bound[i];
        hit |= score >= reach;
        odd |= value != value;
    }
    best.nan |= odd != 0;
    if (!hit) return;
    for (int64_t i = 0; i < count; ++i) {
        const float score = static_cast<float>(logit[i]) + scale * bound[i];
        if (score >= reach && logit[i] > -std::numeric_limits<Logit>::infinity()) {
            const double value = static_cast<double>(logit[i]);
            best.offer(temperature > 0 ? value + temperature * gumbel(key, first + i) : value, first + i);
        }
    }
}

// Rows [start, stop) of one key; they share the noise's bound.
template <typename Logit>
void draw_group(const Logit* logits, int64_t stride, const double* temperature, uint64_t key, int64_t start, int64_t stop,
                int64_t vocab, int64_t* token, uint8_t* unsure) {
    Best best[GROUP];
    float bound[BLOCK] = {};
    const bool greedy = std::all_of(temperature + start, temperature + stop, [](double value) { return value == 0; });
    for (int64_t first = 0; first < vocab; first += BLOCK) {
        const int64_t count = std::min(BLOCK, vocab - first);
        if (!greedy) bound_block(key, first, count, bound);
        for (int64_t row = start; row < stop; ++row)
            scan_block(logits + row * stride + first, bound, temperature[row], key, first, count, best[row - start]);
    }
    for (int64_t row = start; row < stop; ++row) {
        const Best& found = best[row - start];
        token[row] = found.token;
        unsure[row] = found.nan || !std::isfinite(found.score) || (temperature[row] > 0 && found.close());
    }
}

template <typename Logit>
void perturbed_argmax(const Logit* logits, int64_t stride, const double* temperature, const int64_t* key, int64_t rows,
                      int64_t vocab, int64_t* token, uint8_t* unsure) {
    std::vector<int64_t> start;
    for (int64_t row = 0; row < rows; ++row)
        if (row == 0 || key[row] != key[row - 1] || row - start.back() == GROUP) start.push_back(row);
    const int64_t groups = static_cast<int64_t>(start.size());
    start.push_back(rows);
#pragma omp parallel for schedule(dynamic)
    for (int64_t group = 0; group < groups; ++group)
        draw_group(logits, stride, temperature, static_cast<uint64_t>(key[start[group]]), start[group], start[group + 1], vocab,
                   token, unsure);
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// logits: rows of `vocab` numbers, `stride` apart. unsure[r] is set where the twin must draw again: NaN, nothing finite, or too
// close to call.
EXPORT void perturbed_argmax_f32(const float* logits, int64_t stride, const double* temperature, const int64_t* key, int64_t rows,
                                 int64_t vocab, int64_t* token, uint8_t* unsure) {
    perturbed_argmax(logits, stride, temperature, key, rows, vocab, token, unsure);
}

EXPORT void perturbed_argmax_f64(const double* logits, int64_t stride, const double* temperature, const int64_t* key, int64_t rows,
                                 int64_t vocab, int64_t* token, uint8_t* unsure) {
    perturbed_argmax(logits, stride, temperature, key, rows, vocab, token, unsure);
}
