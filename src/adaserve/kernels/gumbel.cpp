// Gumbel-max over a row of logits: argmax of logit + temperature * g(key, token), scores in double, truncated or not.
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
//
// Truncation draws first and looks afterwards: the best of all tokens is the best of the kept ones if it is kept itself. Whether
// it is takes one pass, with no sorting: top-p asks for the mass of the strictly likelier tokens. If it is not, neither is
// anything below it, and the draw is repeated above it: seldom, since most draws fall inside.

#if defined(__AVX512DQ__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512")  // 64-bit products are what this kernel waits for
#endif

#include "simd.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

namespace {

constexpr uint64_t STRIDE = 0x9E3779B97F4A7C15ull;
constexpr int64_t BLOCK = 512;  // tokens whose bounds stay in the first-level cache
constexpr int64_t GROUP = 64;   // rows that share bounds
constexpr double CLOSE = 1e-10;      // scores, relative to their size
constexpr double CLOSE_MASS = 1e-5;  // sums of float32 exponentials
constexpr int64_t HEAP = 1024;       // up to this k a heap finds the k-th largest

template <typename Logit>
constexpr Logit NOTHING = -std::numeric_limits<Logit>::infinity();

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
    double score = NOTHING<double>;
    double second = NOTHING<double>;
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
struct Row {
    const Logit* logit;
    double temperature;
    int64_t top_k;  // 0: all
    double top_p, min_p;
    Logit low = NOTHING<Logit>;  // only tokens above this may be drawn
    Logit greatest = NOTHING<Logit>;
    Best best = {};

    bool truncates() const { return temperature > 0 && (top_k > 0 || top_p < 1 || min_p > 0); }
};

// Offer the tokens of one block that can reach the best score.
template <typename Logit>
void scan_block(Row<Logit>& row, const float* bound, uint64_t key, int64_t first, int64_t count) {
    const Logit* logit = row.logit + first;
    const Logit low = row.low;
    const float scale = static_cast<float>(row.temperature);
    // float32 rounds the bound by less than this near the best score.
    const double slack = 1e-6 * (std::fabs(row.best.score) + 128.0 * row.temperature);
    const float reach = row.best.score > NOTHING<double> ? static_cast<float>(row.best.score - slack) : NOTHING<float>;
    int32_t odd = 0, hit = 0;
    for (int64_t i = 0; i < count; ++i) {
        const float score = static_cast<float>(logit[i]) + scale * bound[i];
        hit |= (score >= reach) & (logit[i] > low);
        odd |= logit[i] != logit[i];
    }
    row.best.nan |= odd != 0;
    if (!hit) return;
    for (int64_t i = 0; i < count; ++i) {
        const float score = static_cast<float>(logit[i]) + scale * bound[i];
        if (score >= reach && logit[i] > low) {
            const double value = static_cast<double>(logit[i]);
            row.best.offer(row.temperature > 0 ? value + row.temperature * gumbel(key, first + i) : value, first + i);
        }
    }
}

// Draw for rows of one key; they share the noise's bound.
template <typename Logit>
void scan(Row<Logit>* rows, int64_t count, uint64_t key, int64_t vocab) {
    float bound[BLOCK] = {};
    const bool greedy = std::all_of(rows, rows + count, [](const Row<Logit>& row) { return row.temperature == 0; });
    for (int64_t first = 0; first < vocab; first += BLOCK) {
        const int64_t size = std::min(BLOCK, vocab - first);
        if (!greedy) bound_block(key, first, size, bound);
        for (int64_t r = 0; r < count; ++r) scan_block(rows[r], bound, key, first, size);
    }
}

template <typename Logit>
Logit greatest_of(const Logit* logit, int64_t vocab) {
    Logit greatest = NOTHING<Logit>;
#pragma omp simd reduction(max : greatest)
    for (int64_t i = 0; i < vocab; ++i) greatest = logit[i] > greatest ? logit[i] : greatest;
    return greatest;
}

// The k-th largest logit, NaN counting as nothing.
template <typename Logit>
Logit kth_largest(const Logit* logit, int64_t vocab, int64_t k) {
    const auto possible = [](Logit value) { return value != value ? NOTHING<Logit> : value; };
    std::vector<Logit> heap(logit, logit + (k <= HEAP ? k : vocab));
    std::transform(heap.begin(), heap.end(), heap.begin(), possible);
    const auto order = std::greater<Logit>();
    if (k > HEAP) {
        std::nth_element(heap.begin(), heap.begin() + (k - 1), heap.end(), order);
        return heap[k - 1];
    }
    std::make_heap(heap.begin(), heap.end(), order);
    for (int64_t first = k; first < vocab; first += BLOCK) {
        const int64_t end = std::min(first + BLOCK, vocab);
        const Logit least = heap.front();
        int32_t hit = 0;
        for (int64_t i = first; i < end; ++i) hit |= logit[i] > least;
        for (int64_t i = first; hit && i < end; ++i) {
            if (logit[i] > heap.front()) {
                std::pop_heap(heap.begin(), heap.end(), order);
                heap.back() = logit[i];
                std::push_heap(heap.begin(), heap.end(), order);
            }
        }
    }
    return heap.front();
}

// Sum of exp((l - greatest) / T) over the logits above `low`: float32 within a block, double across blocks.
template <typename Logit>
double mass_above(const Row<Logit>& row, Logit low, int64_t vocab) {
    const float scale = static_cast<float>(std::min(1.0 / row.temperature, 1e30));
    double total = 0;
    for (int64_t first = 0; first < vocab; first += BLOCK) {
        const Logit* logit = row.logit + first;
        const int64_t count = std::min(BLOCK, vocab - first);
        int32_t hit = 0;
        for (int64_t i = 0; i < count; ++i) hit |= logit[i] > low;
        if (!hit) continue;
        float gap[BLOCK];
        for (int64_t i = 0; i < count; ++i)
            gap[i] = logit[i] > low ? static_cast<float>(logit[i] - row.greatest) * scale : NOTHING<float>;
        for (int64_t i = count; i < BLOCK; ++i) gap[i] = NOTHING<float>;
        vfloat sum = {};
        for (int64_t i = 0; i < BLOCK; i += W) sum += exponential(load(gap + i));
        total += sum_lanes(sum);
    }
    return total;
}

// Where drawing can start: top-k exactly, min-p with a margin that `keeps` settles.
template <typename Logit>
void prepare(Row<Logit>& row, int64_t vocab) {
    row.greatest = greatest_of(row.logit, vocab);
    if (row.top_k > 0 && row.top_k < vocab)
        row.low = std::nextafter(kth_largest(row.logit, vocab, row.top_k), NOTHING<Logit>);
    if (row.min_p > 0) {
        const double floor = static_cast<double>(row.greatest) + row.temperature * std::log(row.min_p);
        const double margin = 1e-5 * (std::fabs(floor) + std::fabs(static_cast<double>(row.greatest)) + row.temperature);
        row.low = std::max(row.low, static_cast<Logit>(floor - margin));
    }
}

enum class Kept { YES, NO, UNSURE };

template <typename Logit>
Kept keeps(const Row<Logit>& row, Logit value, double& whole, Logit kept_low, int64_t vocab) {
    if (value == row.greatest) return Kept::YES;
    if (row.min_p > 0) {
        const double least = std::log(row.min_p);
        const double excess = static_cast<double>(value - row.greatest) / row.temperature - least;
        if (std::fabs(excess) <= 1e-9 * (1 - least)) return Kept::UNSURE;
        if (excess < 0) return Kept::NO;
    }
    if (row.top_p < 1) {
        if (whole == 0) whole = mass_above(row, kept_low, vocab);
        const double excess = mass_above(row, value, vocab) / whole - row.top_p;
        if (!(std::fabs(excess) > CLOSE_MASS)) return Kept::UNSURE;
        if (excess > 0) return Kept::NO;
    }
    return Kept::YES;
}

// Repeat the draw above the winner until the winner is kept; false where the twin must decide.
template <typename Logit>
bool settle(Row<Logit>& row, uint64_t key, int64_t vocab) {
    // Top-p divides by what top-k left; min-p comes after both.
    const bool by_rank = row.top_k > 0 && row.top_k < vocab;
    const Logit kept_low = by_rank && row.min_p > 0 && row.top_p < 1
                               ? std::nextafter(kth_largest(row.logit, vocab, row.top_k), NOTHING<Logit>)
                               : (by_rank ? row.low : NOTHING<Logit>);
    double whole = 0;
    while (!row.best.nan && std::isfinite(row.best.score)) {
        const Logit value = row.logit[row.best.token];
        const Kept kept = keeps(row, value, whole, kept_low, vocab);
        if (kept != Kept::NO) return kept == Kept::YES && !row.best.close();
        row.low = value;
        row.best = {};
        scan(&row, 1, key, vocab);
    }
    return false;
}

template <typename Logit>
struct Problem {
    const Logit* logits;
    int64_t stride;
    const double* temperature;
    const int64_t* key;    // null where all rows are greedy: then each is a group, for nothing is shared
    const int64_t* top_k;  // this and the next two: null without truncation
    const double* top_p;
    const double* min_p;
    int64_t vocab;
};

template <typename Logit>
void draw_group(const Problem<Logit>& problem, int64_t start, int64_t stop, int64_t* token, uint8_t* unsure) {
    Row<Logit> rows[GROUP];
    const uint64_t key = problem.key ? static_cast<uint64_t>(problem.key[start]) : 0;
    for (int64_t r = start; r < stop; ++r) {
        Row<Logit>& row = rows[r - start];
        row = {problem.logits + r * problem.stride, problem.key ? problem.temperature[r] : 0, 0, 1.0, 0.0};
        if (problem.top_k) {
            row.top_k = problem.top_k[r];
            row.top_p = problem.top_p[r];
            row.min_p = problem.min_p[r];
        }
        if (row.truncates()) prepare(row, problem.vocab);
    }
    scan(rows, stop - start, key, problem.vocab);
    for (int64_t r = start; r < stop; ++r) {
        Row<Logit>& row = rows[r - start];
        bool sure = !row.best.nan && std::isfinite(row.best.score) && !(row.temperature > 0 && row.best.close());
        if (row.truncates()) sure = settle(row, key, problem.vocab);
        token[r] = row.best.token;
        unsure[r] = !sure;
    }
}

template <typename Logit>
void draw(const Problem<Logit>& problem, int64_t rows, int64_t* token, uint8_t* unsure) {
    std::vector<int64_t> start;
    for (int64_t row = 0; row < rows; ++row)
        if (row == 0 || !problem.key || problem.key[row] != problem.key[row - 1] || row - start.back() == GROUP) start.push_back(row);
    const int64_t groups = static_cast<int64_t>(start.size());
    start.push_back(rows);
    parallel(groups, [&](int64_t group) { draw_group(problem, start[group], start[group + 1], token, unsure); });
}

// Natural logarithm of positive normal numbers, to about one unit in the last place.
inline vfloat logarithm(vfloat x) {
    const vint exponent = ((vint)x - 0x3f3504f3) >> 23;  // of x over a number in [sqrt(1/2), sqrt(2))
    const vfloat f = (vfloat)((vint)x - (exponent << 23)) - 1.0f;
    const vfloat e = __builtin_convertvector(exponent, vfloat);
    vfloat p = broadcast(7.0376836292e-2f);
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    const vfloat square = f * f;
    return e * 0.693359375f + (f + (p * f * square - square * 0.5f - e * 2.12194440e-4f));
}

// The noise of tokens first .. first + BLOCK - 1 in float32. u and 1 - u are both taken from the hash, so that neither the best
// tokens (u near 1) nor the worst (u near 0) lose digits.
void noise_block(uint64_t key, int64_t first, float* noise) {
    alignas(64) float low[BLOCK], high[BLOCK];
    for (int64_t i = 0; i < BLOCK; ++i) {
        const int64_t hash = static_cast<int64_t>(mix(key + static_cast<uint64_t>(first + i + 1) * STRIDE) >> 12);
        low[i] = static_cast<float>(2 * hash + 1) * 0x1p-53f;
        high[i] = static_cast<float>(2 * (0xFFFFFFFFFFFFFll - hash) + 1) * 0x1p-53f;
    }
    for (int64_t i = 0; i < BLOCK; i += W) {
        const vfloat u = load(low + i), rest = load(high + i);
        const vfloat near = 1.0f - rest;  // rounded; log1p(-rest) = log(near) * rest / (1 - near)
        vfloat minus_log = -logarithm(rest < 0.5f ? near : u);
        const vfloat lost = 1.0f - near;
        const vfloat mended = lost > 0.0f ? minus_log * rest / lost : rest;
        minus_log = rest < 0.5f ? mended : minus_log;
        store(noise + i, -logarithm(minus_log));
    }
}

}  // namespace

// result = logits + temperature * noise, row by row; neighbouring rows of one key share the noise.
EXPORT void perturb_f32(const float* logits, const double* temperature, const int64_t* key, int64_t rows, int64_t vocab,
                        float* result) {
    std::vector<int64_t> start;
    for (int64_t row = 0; row < rows; ++row)
        if (row == 0 || key[row] != key[row - 1]) start.push_back(row);
    const int64_t groups = static_cast<int64_t>(start.size()), blocks = (vocab + BLOCK - 1) / BLOCK;
    start.push_back(rows);
    parallel_runs(groups * blocks, 64, [&](int64_t part) {
        const int64_t group = part / blocks, first = part % blocks * BLOCK;
        const int64_t count = std::min(BLOCK, vocab - first);
        alignas(64) float noise[BLOCK];
        bool random = false;
        for (int64_t r = start[group]; r < start[group + 1]; ++r) random |= temperature[r] > 0;
        if (random) noise_block(static_cast<uint64_t>(key[start[group]]), first, noise);
        for (int64_t r = start[group]; r < start[group + 1]; ++r) {
            const float* from = logits + r * vocab + first;
            float* to = result + r * vocab + first;
            const float heat = static_cast<float>(temperature[r]);
            if (heat > 0)
                for (int64_t i = 0; i < count; ++i) to[i] = from[i] + heat * noise[i];
            else
                std::memcpy(to, from, count * sizeof(float));
        }
    });
}

// logits: rows of `vocab` numbers, `stride` apart. temperature, key: null when all are greedy. top_k, top_p, min_p: all null when
// nothing is truncated. unsure[r] is set
// where the twin must draw again: NaN, nothing finite, or too close to call.
EXPORT void perturbed_argmax_f32(const float* logits, int64_t stride, const double* temperature, const int64_t* key,
                                 const int64_t* top_k, const double* top_p, const double* min_p, int64_t rows, int64_t vocab,
                                 int64_t* token, uint8_t* unsure) {
    draw(Problem<float>{logits, stride, temperature, key, top_k, top_p, min_p, vocab}, rows, token, unsure);
}

EXPORT void perturbed_argmax_f64(const double* logits, int64_t stride, const double* temperature, const int64_t* key,
                                 const int64_t* top_k, const double* top_p, const double* min_p, int64_t rows, int64_t vocab,
                                 int64_t* token, uint8_t* unsure) {
    draw(Problem<double>{logits, stride, temperature, key, top_k, top_p, min_p, vocab}, rows, token, unsure);
}

// Whether logits[r, token[r]] is a finite number.
EXPORT void finite_at_f32(const float* logits, int64_t stride, const int64_t* token, int64_t rows, uint8_t* finite) {
    for (int64_t r = 0; r < rows; ++r) finite[r] = std::isfinite(logits[r * stride + token[r]]);
}
