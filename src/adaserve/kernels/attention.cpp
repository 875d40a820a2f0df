// Attention of packed rows over a paged prefix and a masked scratch tail.
//
// Work is cut into items: a block of rows of one group, times one key-value head. The item's queries (rows x query heads of that
// head) share one reading of keys and values. What a query sees is a sequence: its paged positions in order, then its tail
// rows in order of bit. Scores, the softmax sum and the sum over values all follow that sequence's indices and nothing else, so
// a result depends neither on the batch mates nor on whether a key lives in a page or in the tail. How they are computed is said by
// an Arithmetic: Exact (float32, attend_exact.h) or Pairs (of bfloat16, attend_pairs.h).
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "attend_pairs.h"

constexpr int TAIL = 64;             // scratch rows a slot
constexpr int64_t QUERIES = 32;      // queries an item aims at
constexpr int64_t SCORES = 1 << 17;  // scores an item aims at: half the second level cache
constexpr int64_t RUN = 64;          // values that all heads take before the next
constexpr int64_t MANY = 8;          // from so many blocks on, one thread takes all heads of a block

struct Block {
    int64_t first, last, slot;  // rows [first, last)
};

struct Pages {
    const int64_t* table;
    int64_t per_slot, size, tail_start;
};

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
template <class Arithmetic, class T = typename Arithmetic::Key>
static void attend_item(const float* q, int64_t heads, int64_t kv_heads, int64_t head_dim, const T* keys, const T* values, int64_t head,
                        int64_t past, Block block, const int64_t* prefix, const int64_t* mask, Pages pages, float scale, float* out,
                        Ahead ahead, Scratch<T>& s) {
    const int64_t query_width = Arithmetic::query_width(head_dim), out_width = Arithmetic::out_width(head_dim);
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
    s.query.resize(own * queries * query_width);
    s.score.resize(own * queries * stride);
    s.out.resize(own * queries * out_width);
    std::fill(s.out.data(), s.out.data() + own * queries * out_width, 0.0f);
    s.total.resize(own * queries);
    for (int64_t h = 0; h < own; h++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t g = 0; g < shared; g++) {
                const float* from = q + ((block.first + r) * heads + (head + h) * shared + g) * head_dim;
                Arithmetic::take_query(from, head_dim, scale, s.query.data() + ((h * rows + r) * shared + g) * query_width);
            }

    s.column.resize(head_dim * KEYS + W);
    float* column = s.column.data();
    for (int64_t c = 0; c < columns; c += KEYS) {
        for (int64_t h = 0; h < own; h++) {
            const T* key[KEYS];
            for (int i = 0; i < KEYS; i++) key[i] = s.key[c + i] + h * head_dim;
            Arithmetic::columns(key, head_dim, column);
            for (int i = 0; i < KEYS; i++)
                for (int64_t b = 0; b < int64_t(head_dim * sizeof(T)); b += 64) {
                    __builtin_prefetch((const char*)(s.key[c + KEYS + i] + h * head_dim) + b, 0, 3);
                    __builtin_prefetch((const char*)(s.value[c + i] + h * head_dim) + b, 0, 2);  // its turn comes after all keys
                }
            Arithmetic::scores(s.query.data() + h * queries * query_width, queries, head_dim, column,
                               s.score.data() + h * queries * stride + c, stride);
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
                s.total[at] = n ? Arithmetic::weights(score, n) : 1.0f;
            }

    // Values that all see; then, row by row, the rest of its prefix and its tail.
    const int64_t common = shortest / Arithmetic::STEP * Arithmetic::STEP;
    const int64_t share = ahead.left * RUN / (std::max<int64_t>(common, 1) * own) + 64;
    for (int64_t c = 0; c < common; c += RUN)
        for (int64_t h = 0; h < own; h++) {
            ahead.fetch(share);
            Arithmetic::add(s.score.data() + h * queries * stride, c, stride, queries, s.value.data() + c, std::min(RUN, common - c),
                            h * head_dim, s.out.data() + h * queries * out_width, head_dim);
        }
    for (int64_t r = 0; r < rows; r++) {
        s.seen.assign(s.value.begin() + common, s.value.begin() + prefix[block.first + r]);
        for (uint64_t left = uint64_t(mask[block.first + r]); left; left &= left - 1)
            s.seen.push_back(s.value[tail_at + __builtin_ctzll(left)]);
        const int64_t n = s.seen.size();
        if (n == 0) continue;
        s.seen.resize(n + KEYS, s.seen[n - 1]);  // fetched ahead, or added with a weight of 0
        for (int64_t h = 0; h < own; h++)
            Arithmetic::add(s.score.data() + (h * rows + r) * shared * stride, common, stride, shared, s.seen.data(), n, h * head_dim,
                            s.out.data() + (h * rows + r) * shared * out_width, head_dim);
    }
    for (int64_t h = 0; h < own; h++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t g = 0; g < shared; g++) {
                const int64_t at = (h * rows + r) * shared + g;
                float* to = out + ((block.first + r) * heads + (head + h) * shared + g) * head_dim;
                Arithmetic::finish(s.out.data() + at * out_width, 1.0f / s.total[at], head_dim, to);
            }
}

template <class Arithmetic, class T = typename Arithmetic::Key>
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
            attend_item<Arithmetic>(q, heads, kv_heads, head_dim, keys, values, head, head + together, blocks[i / apart], prefix, mask, pages,
                        float(scale), out, ahead, scratch);
        }
    });
}

// q [B, heads, head_dim]; keys, values [pool rows, kv_heads, head_dim]; out [B, heads * head_dim]; the rest as in ForwardBatch.
#define ATTEND(NAME, ARITHMETIC)                                                                                                     \
    EXPORT void NAME(const float* q, int64_t heads, int64_t kv_heads, int64_t head_dim, const ARITHMETIC::Key* keys,                  \
                     const ARITHMETIC::Key* values, int64_t groups, const int64_t* start, const int64_t* slot, const int64_t* prefix, \
                     const int64_t* mask, const int64_t* table, int64_t per_slot, int64_t page_size, int64_t tail_start,              \
                     double scale, float* out) {                                                                                      \
        attend<ARITHMETIC>(q, heads, kv_heads, head_dim, keys, values, groups, start, slot, prefix, mask,                             \
                           {table, per_slot, page_size, tail_start}, scale, out);                                                     \
    }

ATTEND(fma_float, Exact<float>)
ATTEND(fma_bf16, Exact<bf16>)
#if defined(ADASERVE_PAIRS)
ATTEND(dot_bf16, Pairs)
#endif
