// Attention of packed rows over a paged prefix and a masked scratch tail.
//
// Work is cut into items: a block of rows of one group, times one key-value head. The item's queries (rows x query heads of that
// head) share one reading of keys and values. What a query sees is a sequence: its paged positions in order, then its tail
// rows in order of bit. Scores, the softmax sum and the sum over values all follow that sequence's indices and nothing else, so
// a result depends neither on the batch mates nor on whether a key lives in a page or in the tail.
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "simd.h"

constexpr int KEYS = 2 * W;          // keys scored at once
constexpr int TAIL = 64;             // scratch rows a slot
constexpr int64_t QUERIES = 32;      // queries an item aims at
constexpr int64_t SCORES = 1 << 17;  // scores an item aims at: half the second level cache
#if defined(__AVX__) && !defined(__AVX512F__)
constexpr int SCORE_ROWS = 4, VALUE_ROWS = 2;
#else
constexpr int SCORE_ROWS = 8, VALUE_ROWS = 6;
#endif
constexpr int64_t AHEAD = 24;  // values fetched so long before use
constexpr int64_t RUN = 64;   // values that all heads take before the next
constexpr int64_t MANY = 8;   // from so many blocks on, one thread takes all heads of a block
constexpr int SPAN = 4;  // vectors of a value row at once

struct Block {
    int64_t first, last, slot;  // rows [first, last)
};

struct Pages {
    const int64_t* table;
    int64_t per_slot, size, tail_start;
};

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

static float exponentials(float* score, int64_t n) {
    for (int i = 0; i < W; i++) score[n + i] = -INFINITY;
    vfloat best = broadcast(-INFINITY);
    for (int64_t i = 0; i < n; i += W) {
        const vfloat s = load(score + i);
        best = s > best ? s : best;
    }
    const float top = max_lanes(best);
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

// ---- one item

// Floats that start at a cache line: vectors that straddle two cost double.
struct Floats {
    std::vector<float> store;
    float* first = nullptr;
    void resize(int64_t n) {
        if (int64_t(store.size()) < n + 16) store.resize(n + n / 2 + 16);
        first = (float*)(((uintptr_t)store.data() + 63) & ~uintptr_t(63));
    }
    float* data() const { return first; }
    float& operator[](int64_t i) const { return first[i]; }
};

template <class T>
struct Scratch {
    Floats query, column, score, out, total;
    std::vector<const T*> key, value, seen;
};

// Keys that the next item of this thread will read, fetched while this one's values are added: keys and values alike then
// come from memory while arithmetic goes on, instead of all at once.
struct Ahead {
    const char* keys;
    const int64_t* page;
    int64_t page_bytes, left, at;

    void fetch(int64_t bytes) {
        for (int64_t end = std::max<int64_t>(left - bytes, 0); left > end; left -= 64, at += 64) {
            if (at >= page_bytes) at = 0, page++;
            __builtin_prefetch(keys + *page * page_bytes + at, 0, 2);
        }
    }
};

// A block's rows with key-value heads [head, past). Key by key all heads take their part, because heads of a key lie together:
// the machine then sees runs of memory as long as a page and fetches them by itself.
template <class T>
static void attend_item(const float* q, int64_t heads, int64_t kv_heads, int64_t head_dim, const T* keys, const T* values, int64_t head,
                        int64_t past, Block block, const int64_t* prefix, const int64_t* mask, Pages pages, float scale, float* out,
                        Ahead ahead, Scratch<T>& s) {
    const int64_t shared = heads / kv_heads, rows = block.last - block.first, queries = rows * shared, own = past - head;
    int64_t longest = 0, shortest = prefix[block.first];
    uint64_t any = 0;
    for (int64_t r = block.first; r < block.last; r++) {
        longest = std::max(longest, prefix[r]);
        shortest = std::min(shortest, prefix[r]);
        any |= uint64_t(mask[r]);
    }
    const int64_t tail = any ? 64 - __builtin_clzll(any) : 0;
    const int64_t tail_at = (longest + KEYS - 1) / KEYS * KEYS;  // column of tail row 0
    const int64_t columns = tail_at + (tail + KEYS - 1) / KEYS * KEYS, stride = columns + W;

    // Where the keys and values live; columns that only fill up a block repeat the last real row.
    s.key.resize(columns + KEYS);
    s.value.resize(columns + KEYS);
    const int64_t row_width = kv_heads * head_dim;
    const T *first_key = keys + head * head_dim, *first_value = values + head * head_dim;
    const int64_t* page = pages.table + block.slot * pages.per_slot;
    for (int64_t at = 0; at < longest; at += pages.size, page++) {
        const int64_t base = *page * pages.size, count = std::min(pages.size, longest - at);
        for (int64_t i = 0; i < count; i++) {
            s.key[at + i] = first_key + (base + i) * row_width;
            s.value[at + i] = first_value + (base + i) * row_width;
        }
    }
    for (int64_t i = longest; i < tail_at; i++) s.key[i] = s.key[longest - 1], s.value[i] = s.value[longest - 1];
    const int64_t base = pages.tail_start + block.slot * TAIL;
    for (int64_t i = tail_at; i < columns; i++) {
        const int64_t row = base + std::min(i - tail_at, tail - 1);
        s.key[i] = first_key + row * row_width;
        s.value[i] = first_value + row * row_width;
    }
    for (int64_t i = columns; i < columns + KEYS; i++) s.key[i] = first_key, s.value[i] = first_value;  // fetched ahead, never used

    // Queries by head, then by row.
    s.query.resize(own * queries * head_dim);
    s.score.resize(own * queries * stride);
    s.out.resize(own * queries * head_dim);
    std::fill(s.out.data(), s.out.data() + own * queries * head_dim, 0.0f);
    s.total.resize(own * queries);
    for (int64_t h = 0; h < own; h++)
        for (int64_t r = 0; r < rows; r++) {
            const float* from = q + ((block.first + r) * heads + (head + h) * shared) * head_dim;
            float* to = s.query.data() + (h * rows + r) * shared * head_dim;
            for (int64_t i = 0; i < shared * head_dim; i++) to[i] = from[i] * scale;
        }

    s.column.resize(head_dim * KEYS + W);
    float* column = s.column.data();
    for (int64_t c = 0; c < columns; c += KEYS) {
        for (int64_t h = 0; h < own; h++) {
            const T* key[KEYS];
            for (int i = 0; i < KEYS; i++) key[i] = s.key[c + i] + h * head_dim;
            to_columns(key, head_dim, column);
            for (int i = 0; i < KEYS; i++)
                for (int64_t b = 0; b < int64_t(head_dim * sizeof(T)); b += 64) {
                    __builtin_prefetch((const char*)(s.key[c + KEYS + i] + h * head_dim) + b, 0, 3);
                    __builtin_prefetch((const char*)(s.value[c + i] + h * head_dim) + b, 0, 2);  // its turn comes after all keys
                }
            score_keys(s.query.data() + h * queries * head_dim, queries, head_dim, column, s.score.data() + h * queries * stride + c, stride);
        }
    }

    // Every query's tail scores move up behind its own prefix.
    for (int64_t h = 0; h < own; h++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t g = 0; g < shared; g++) {
                const int64_t at = (h * rows + r) * shared + g;
                float* score = s.score.data() + at * stride;
                int64_t n = prefix[block.first + r];
                for (uint64_t left = uint64_t(mask[block.first + r]); left; left &= left - 1)
                    score[n++] = score[tail_at + __builtin_ctzll(left)];
                s.total[at] = n ? exponentials(score, n) : 1.0f;
            }

    // Values that all see; then, row by row, the rest of its prefix and its tail.
    const int64_t share = ahead.left * RUN / (std::max<int64_t>(shortest, 1) * own) + 64;
    for (int64_t c = 0; c < shortest; c += RUN)
        for (int64_t h = 0; h < own; h++) {
            ahead.fetch(share);
            add_values(s.score.data() + h * queries * stride + c, stride, queries, s.value.data() + c, std::min(RUN, shortest - c),
                       h * head_dim, s.out.data() + h * queries * head_dim, head_dim);
        }
    for (int64_t r = 0; r < rows; r++) {
        s.seen.assign(s.value.begin() + shortest, s.value.begin() + prefix[block.first + r]);
        for (uint64_t left = uint64_t(mask[block.first + r]); left; left &= left - 1)
            s.seen.push_back(s.value[tail_at + __builtin_ctzll(left)]);
        const int64_t n = s.seen.size();
        if (n == 0) continue;
        s.seen.resize(n + KEYS, first_value);
        for (int64_t h = 0; h < own; h++)
            add_values(s.score.data() + (h * rows + r) * shared * stride + shortest, stride, shared, s.seen.data(), n, h * head_dim,
                       s.out.data() + (h * rows + r) * shared * head_dim, head_dim);
    }
    for (int64_t h = 0; h < own; h++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t g = 0; g < shared; g++) {
                const int64_t at = (h * rows + r) * shared + g;
                const float inverse = 1.0f / s.total[at];
                const float* from = s.out.data() + at * head_dim;
                float* to = out + ((block.first + r) * heads + (head + h) * shared + g) * head_dim;
                for (int64_t d = 0; d < head_dim; d++) to[d] = from[d] * inverse;
            }
}

template <class T>
static void attend(const float* q, int64_t heads, int64_t kv_heads, int64_t head_dim, const T* keys, const T* values, int64_t groups,
                   const int64_t* start, const int64_t* slot, const int64_t* prefix, const int64_t* mask, Pages pages, double scale,
                   float* out) {
    const int64_t shared = heads / kv_heads;
    std::vector<Block> blocks;
    for (int64_t g = 0; g < groups; g++) {
        int64_t longest = 0;
        for (int64_t r = start[g]; r < start[g + 1]; r++) longest = std::max(longest, prefix[r]);
        const int64_t queries = std::min(QUERIES, SCORES / (longest + TAIL));
        const int64_t height = std::max<int64_t>(1, queries / shared);
        for (int64_t r = start[g]; r < start[g + 1]; r += height) blocks.push_back({r, std::min(r + height, start[g + 1]), slot[g]});
    }
    const int64_t count = blocks.size(), apart = count < MANY ? kv_heads : 1, together = kv_heads / apart, items = count * apart;
    const int64_t runs = apart > 1 ? items : std::max(MANY / 2, count / MANY);
    parallel(runs, [&](int64_t run) {
        static thread_local Scratch<T> scratch;
        const int64_t past = items * (run + 1) / runs;
        for (int64_t i = items * run / runs; i < past; i++) {
            const int64_t head = i % apart * together, bytes = kv_heads * head_dim * sizeof(T);
            Ahead ahead{(const char*)keys, nullptr, pages.size * bytes, 0, 0};
            if (apart == 1 && i + 1 < past) {
                ahead.page = pages.table + blocks[i + 1].slot * pages.per_slot;
                ahead.left = prefix[blocks[i + 1].first] * bytes;
            }
            attend_item(q, heads, kv_heads, head_dim, keys, values, head, head + together, blocks[i / apart], prefix, mask, pages,
                        float(scale), out, ahead, scratch);
        }
    });
}

// q [B, heads, head_dim]; keys, values [pool rows, kv_heads, head_dim]; out [B, heads * head_dim]; the rest as in ForwardBatch.
EXPORT void attend_float(const float* q, int64_t heads, int64_t kv_heads, int64_t head_dim, const float* keys, const float* values,
                         int64_t groups, const int64_t* start, const int64_t* slot, const int64_t* prefix, const int64_t* mask,
                         const int64_t* table, int64_t per_slot, int64_t page_size, int64_t tail_start, double scale, float* out) {
    attend(q, heads, kv_heads, head_dim, keys, values, groups, start, slot, prefix, mask, {table, per_slot, page_size, tail_start}, scale, out);
}

EXPORT void attend_bf16(const float* q, int64_t heads, int64_t kv_heads, int64_t head_dim, const bf16* keys, const bf16* values,
                        int64_t groups, const int64_t* start, const int64_t* slot, const int64_t* prefix, const int64_t* mask,
                        const int64_t* table, int64_t per_slot, int64_t page_size, int64_t tail_start, double scale, float* out) {
    attend(q, heads, kv_heads, head_dim, keys, values, groups, start, slot, prefix, mask, {table, per_slot, page_size, tail_start}, scale, out);
}
