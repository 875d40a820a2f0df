// All of a draft's passes in one call, with what happens to their results in between: the kernels of the other libraries,
// called by their addresses. Nothing is computed here, so every bit is what the kernels give.
//
// A pass over a draft of four layers takes half a millisecond. From Python its thirty operations on a handful of numbers would take
// as long again, and its threads would fall asleep meanwhile.
#include <cstring>

#include "layers.h"

typedef void (*Norm)(const float* x, const float* weight, int64_t rows, int64_t width, double eps, float* out);
typedef void (*Perturb)(const float* logits, const double* temperature, const int64_t* key, int64_t rows, int64_t vocabulary, float* result);
typedef void (*Top)(const float* logits, int64_t rows, int64_t vocabulary, const double* inverse_temperature, int64_t width, int64_t* token,
                    double* log_prob);
typedef void (*Extend)(const int64_t* token, const double* log_prob, int64_t n, int64_t rows, int64_t ranks, int64_t width, int64_t depth,
                       const int64_t* room, const double* above_prob, const int64_t* above_mask, int64_t* chosen, int64_t* parent,
                       int64_t* mask, double* score);
typedef void (*Place)(const int64_t* slot, int64_t n, const int64_t* tail, int64_t width, const int64_t* known, int64_t depth,
                      int64_t tail_start, int64_t* out);
typedef void (*Known)(const int64_t* chunks, int64_t count, const int64_t* tokens, int64_t length, const int64_t* pages, int64_t per_slot,
                      int64_t page_size, int64_t rows, int64_t* out);

// Words of 64 bits each, as speculation/growth.py fills them in.
struct Draft {
    RunLayers run_layers;
    Norm norm;
    Perturb perturb;
    Top top;
    Extend extend;
    Place place;
    Known known;
    const Layer* layers;
    const Shape* shape;
    const float* first_norm;
    const char* embedding;  // [V, hidden]
    int64_t narrow;         // whether of bfloat16, else of float32
    Product head;
    int64_t vocabulary;  // tokens that are proposed: the first so many
};

struct Trees {
    const int64_t* chunks;
    int64_t count, rows;  // what is read first, [3, count] as of known_rows: of each tree's request, then of others
    const int64_t* tokens;  // [slots, length]
    int64_t length;
    int64_t n, width, depth;
    const int64_t *slot, *known, *room;   // [n], [slots], [n]
    const double *inverse, *temperature;  // [n]
    const int64_t* key;                   // [depth, n], null where nothing is perturbed
    int64_t *token, *parent;              // [n, depth * width]
    double* path_prob;
};

static void embed(const Draft& draft, const int64_t* token, int64_t rows, float* out) {
    const int64_t hidden = draft.shape->hidden;
    for (int64_t row = 0; row < rows; row++, out += hidden) {
        if (!draft.narrow) {
            std::memcpy(out, draft.embedding + token[row] * hidden * 4, hidden * 4);
            continue;
        }
        const uint16_t* from = (const uint16_t*)draft.embedding + token[row] * hidden;
        for (int64_t i = 0; i < hidden; i++) {
            const uint32_t bits = uint32_t(from[i]) << 16;
            std::memcpy(out + i, &bits, 4);
        }
    }
}

// given: the pass, but for its rows and groups.
EXPORT void grow_trees(const Draft* draft, const Pass* given, const Trees* trees, double eps, double scale) {
    static thread_local std::vector<float> x_room, residual_room, logits_room, perturbed_room;
    static thread_local std::vector<int64_t> number_room, known_room;
    static thread_local std::vector<double> real_room;
    const int64_t n = trees->n, width = trees->width, most = n * width, deep = draft->shape->hidden, vocabulary = draft->vocabulary;
    const int64_t ranks = width < vocabulary ? width : vocabulary, columns = trees->depth * width;
    const int64_t first = trees->rows, widest = first > most ? first : most;
    float *x = room(x_room, widest * deep), *residual = room(residual_room, widest * deep);
    float* logits = room(logits_room, most * vocabulary);
    int64_t* numbers = room(number_room, 8 * most + n + 1 + most * ranks + width);
    int64_t *chosen = numbers, *parent = numbers + most, *mask = numbers + 2 * most, *key = numbers + 3 * most;
    int64_t *above_mask = numbers + 4 * most, *placed = numbers + 5 * most, *token = placed + 3 * most + n + 1, *tail = token + most * ranks;
    double* reals = room(real_room, 4 * most + most * ranks);
    double *score = reals, *above = reals + most, *inverse = reals + 2 * most, *temperature = reals + 3 * most, *log_prob = reals + 4 * most;

    const auto read = [&](const Pass& pass, const int64_t* tokens) {
        embed(*draft, tokens, pass.rows, residual);
        draft->norm(residual, draft->first_norm, pass.rows, deep, eps, x);
        draft->run_layers(draft->layers, draft->shape, &pass, eps, scale, x, residual);
    };
    Pass pass = *given;
    int64_t* known = room(known_room, 5 * first + 2 * trees->count + 1);
    draft->known(trees->chunks, trees->count, trees->tokens, trees->length, pass.table, pass.per_slot, pass.page_size, first, known);
    pass.rows = first;
    pass.position = known + first;
    pass.prefix = known + 2 * first;
    pass.mask = known + 3 * first;
    pass.dest = known + 4 * first;
    pass.groups = trees->count;
    pass.start = known + 5 * first;
    pass.slot = pass.start + trees->count + 1;
    read(pass, known);
    for (int64_t i = 0; i < n; i++) {  // the roots' rows, the last ones of their chunks, come first from now on
        const int64_t last = pass.start[i + 1] - 1;
        if (last > i) std::memcpy(x + i * deep, x + last * deep, deep * sizeof(float));
    }

    for (int64_t step = 1; step <= trees->depth; step++) {
        const int64_t each = step == 1 ? 1 : width, rows = n * each;
        draft->head(x, rows, deep, vocabulary, logits);
        for (int64_t row = 0; row < rows; row++) inverse[row] = trees->inverse[row / each];
        const float* ranked = logits;
        if (trees->key) {
            for (int64_t row = 0; row < rows; row++) {
                temperature[row] = trees->temperature[row / each];
                key[row] = trees->key[(step - 1) * n + row / each];
            }
            float* perturbed = room(perturbed_room, most * vocabulary);
            draft->perturb(logits, temperature, key, rows, vocabulary, perturbed);
            ranked = perturbed;
        }
        draft->top(ranked, rows, vocabulary, inverse, ranks, token, log_prob);
        draft->extend(token, log_prob, n, each, ranks, width, step, trees->room, step == 1 ? nullptr : above,
                      step == 1 ? nullptr : above_mask, chosen, parent, mask, score);
        for (int64_t row = 0; row < most; row++) {
            const int64_t cell = row / width * columns + (step - 1) * width + row % width;
            trees->token[cell] = chosen[row];
            trees->parent[cell] = parent[row];
            trees->path_prob[cell] = above[row] = score[row];
            above_mask[row] = mask[row];
        }
        if (step == trees->depth) return;

        for (int64_t j = 0; j < width; j++) tail[j] = (step - 1) * width + j;
        draft->place(trees->slot, n, tail, width, trees->known, step, given->tail_start, placed);
        pass.rows = most;
        pass.position = placed;
        pass.prefix = placed + most;
        pass.dest = placed + 2 * most;
        pass.mask = mask;
        pass.groups = n;
        pass.start = placed + 3 * most;
        pass.slot = trees->slot;
        read(pass, chosen);
    }
}
