// One step of a beam over candidate trees (kernels/beam.py): a few dozen numbers, for which a dozen tensor operations would take
// as long as a layer of a draft model.
#include <cmath>

#include "parallel.h"

constexpr int64_t MOST = 63;  // nodes of a tree, and so the widest beam

static double probability(double log_prob) {
    const double p = std::exp(log_prob);
    return p != p ? 0.0 : p < 1.0 ? p : 1.0;
}

// token, log_prob [n, rows, ranks]; room [n]; above_prob, above_mask [n, rows] of the step before, null in the first.
// chosen, parent, mask, score [n, width].
EXPORT void extend_beam(const int64_t* token, const double* log_prob, int64_t n, int64_t rows, int64_t ranks, int64_t width, int64_t depth,
                        const int64_t* room, const double* above_prob, const int64_t* above_mask, int64_t* chosen, int64_t* parent,
                        int64_t* mask, double* score) {
    const int64_t first = (depth - 1) * width, offers = rows * ranks;
    for (int64_t i = 0; i < n; i++, token += offers, log_prob += offers, chosen += width, parent += width, mask += width, score += width) {
        int64_t pick[MOST], count = 0;
        for (int64_t at = 0; at < offers; at++) {
            double f = depth > room[i] ? 0.0 : probability(log_prob[at]);
            if (above_prob) f *= above_prob[i * rows + at / ranks];
            if (count == width && !(f > score[width - 1])) continue;
            int64_t to = count < width ? count++ : width - 1;
            for (; to > 0 && f > score[to - 1]; to--) {  // of equals the first stays first
                score[to] = score[to - 1];
                pick[to] = pick[to - 1];
            }
            score[to] = f;
            pick[to] = at;
        }
        for (; count < width; count++) {  // a vocabulary smaller than the width
            score[count] = 0.0;
            pick[count] = offers;
        }
        for (int64_t j = 0; j < width; j++) {
            const int64_t row = pick[j] / ranks < rows ? pick[j] / ranks : rows - 1;
            chosen[j] = score[j] > 0.0 ? token[pick[j]] : 0;
            parent[j] = above_mask ? first - width + row : -1;
            mask[j] = int64_t(1) << (first + j) | (above_mask ? above_mask[i * rows + row] : 0);
        }
    }
}
