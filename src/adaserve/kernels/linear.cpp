// y = x W^T + b for few rows (bound by the memory that holds W) and for many (bound by multiply-adds), with one order of
// summation: every output is one chain over k = 0, 1, 2, ..., however many rows there are. A link is
//     fma   a fused multiply-add of float32 numbers
//     dot   the processor's own step over a pair of k's, of rows rounded to bfloat16 too (AVX512_BF16)
//
// Packed weights: panels of C = 3 W outputs, W being the vector width in floats.
//     float32   [N / C][K][C]
//     bfloat16  [N / C][K / 2][C][2]     a 32-bit word holds one output's weights for k and k + 1
//     blocks    [N / C][K / 32] steps of blocks.h; a panel becomes bfloat16 in the second level cache when its turn comes
//
// Two more kernels have other bits in their results: amx.h for bfloat16 and blocks, and for blocks vnni.h, whose bits int8_tiles.h
// gives faster for many rows.
#include <cstdlib>
#include <vector>

#include "amx.h"
#include "int8_tiles.h"
#include "vnni.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__AVX__) && !defined(__AVX512F__)
constexpr int ROWS = 4;  // 16 registers: 12 sums, 3 weights, 1 activation
#else
constexpr int ROWS = 8;  // 32 registers: 24 sums, 3 to 6 weights, 1 activation
#endif
constexpr long BLOCK = 192;   // rows that share one reading of a panel from memory
constexpr long AHEAD = 8192;  // bytes between a weight's prefetch and its use when one tile holds all rows

// What a tile fetches for later: `step` bytes for every k (float32) or pair of k's (bfloat16, blocks), from `from` on.
struct Fetch {
    const char* from;
    long step;
    inline void at(long j) const {
        UNROLL for (int i = 0; i < V; i++) __builtin_prefetch(from + j * step + i * step / V, 0, 2);
    }
};

// sum[r][v] += x[r][k] * weight[k][v], in order of k, for R rows.
template <int R>
static inline void accumulate(vfloat (&sum)[R][V], const float* x, long stride, const float* panel, long depth, Fetch fetch) {
    for (long k = 0; k < depth; k++) {
        vfloat weight[V];
        fetch.at(k);
        UNROLL for (int v = 0; v < V; v++) weight[v] = load(panel + k * C + v * W);
        UNROLL for (int r = 0; r < R; r++) {
            vfloat a = broadcast(x[r * stride + k]);
            UNROLL for (int v = 0; v < V; v++) sum[r][v] += a * weight[v];
        }
    }
}

template <int R>
static inline void accumulate(vfloat (&sum)[R][V], const float* x, long stride, const bf16* panel, long depth, Fetch fetch) {
    const vuint upper = vuint{} + 0xffff0000u;
    const long pairs = depth / 2;
    for (long j = 0; j < pairs; j++) {
        vfloat even[V], odd[V];
        fetch.at(j);
        UNROLL for (int v = 0; v < V; v++) {
            vuint word = load_words(panel + (j * C + v * W) * 2);
            even[v] = (vfloat)(word << 16);
            odd[v] = (vfloat)(word & upper);
        }
        UNROLL for (int r = 0; r < R; r++) {
            vfloat a = broadcast(x[r * stride + 2 * j]), b = broadcast(x[r * stride + 2 * j + 1]);
            UNROLL for (int v = 0; v < V; v++) sum[r][v] += a * even[v];
            UNROLL for (int v = 0; v < V; v++) sum[r][v] += b * odd[v];
        }
    }
    if (depth % 2) {
        UNROLL for (int v = 0; v < V; v++) {
            vfloat even = (vfloat)(load_words(panel + (pairs * C + v * W) * 2) << 16);
            UNROLL for (int r = 0; r < R; r++) sum[r][v] += broadcast(x[r * stride + depth - 1]) * even;
        }
    }
}

#if defined(__AVX512BF16__)
template <int R>
static inline void accumulate(vfloat (&sum)[R][V], const bf16* x, long row, const bf16* panel, long depth, Fetch fetch) {
    for (long j = 0; j < depth / 2; j++) {
        __m512bh weight[V];
        fetch.at(j);
        UNROLL for (int v = 0; v < V; v++) weight[v] = (__m512bh)load_words(panel + (j * C + v * W) * 2);
        UNROLL for (int r = 0; r < R; r++) {
            int32_t pair;
            std::memcpy(&pair, x + r * row + 2 * j, 4);
            const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
            UNROLL for (int v = 0; v < V; v++) sum[r][v] = (vfloat)_mm512_dpbf16_ps((__m512)sum[r][v], a, weight[v]);
        }
    }
}
#endif

// R rows times one panel.
template <int R, class X, class T>
static void tile(const X* x, long depth, const T* panel, const float* bias, float* out, long stride, int columns, Fetch fetch) {
    vfloat sum[R][V];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < V; v++) sum[r][v] = vfloat{};
    accumulate<R>(sum, x, depth, panel, depth, fetch);
    float edge[C];
    if (bias) {
        std::memset(edge, 0, sizeof edge);
        std::memcpy(edge, bias, columns * sizeof(float));
        UNROLL for (int v = 0; v < V; v++) {
            vfloat b = load(edge + v * W);
            UNROLL for (int r = 0; r < R; r++) sum[r][v] += b;
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        if (columns == C) {
            UNROLL for (int v = 0; v < V; v++) store(out + r * stride + v * W, sum[r][v]);
        } else {
            UNROLL for (int v = 0; v < V; v++) store(edge + v * W, sum[r][v]);
            std::memcpy(out + r * stride, edge, columns * sizeof(float));
        }
    }
}

template <class X, class T>
static void rows_times_panel(long rows, const X* x, long depth, const T* panel, const float* bias, float* out, long stride,
                             int columns, Fetch fetch) {
    switch (rows) {
#define CASE(R) case R: return tile<R, X, T>(x, depth, panel, bias, out, stride, columns, fetch);
        CASE(1) CASE(2) CASE(3) CASE(4)
#if !defined(__AVX__) || defined(__AVX512F__)
        CASE(5) CASE(6) CASE(7) CASE(8)
#endif
#undef CASE
    }
}

// Weights as they lie in memory: T is what a tile multiplies by, LINE the bytes of a panel for one k or pair of k's.
template <class T>
struct Stored {
    typedef T Value;
    static constexpr long LINE = C * 4;
    static const T* panel(const char* from, long) { return (const T*)from; }
};

#if defined(__AVX512BW__)
// Blocks, made into a panel [K / 2][C][2] of bfloat16 by the thread that multiplies by it.
template <class Format>
struct Expanded {
    typedef bf16 Value;
    static constexpr long LINE = Format::BYTES / (DEEP / 2);
    static const bf16* panel(const char* from, long lines) {
        static thread_local std::vector<bf16> room;
        if (room.size() < size_t(lines * C * 2)) room.resize(lines * C * 2);
        alignas(64) bf16 step[C * DEEP];
        for (long line = 0; line < lines; line += DEEP / 2, from += Format::BYTES) {
            for (int v = 0; v < V; v++) {
                Format::expand(from, v, step);
                __m512i m[16];
                for (int o = 0; o < 16; o++) m[o] = _mm512_load_si512(step + (v * W + o) * DEEP);
                transpose(m);
                for (int pair = 0; pair < 16; pair++) _mm512_storeu_si512(room.data() + ((line + pair) * C + v * W) * 2, m[pair]);
            }
        }
        return room.data();
    }
};
#endif

// Each panel is read from memory once for a block of rows. While one panel is at work the next is fetched into the second
// level cache, a share by every tile, so that memory never waits for arithmetic nor arithmetic for memory.
template <class Source, class X>
static void multiply(const X* x, long rows, long depth, const char* packed, long outputs, const float* bias, float* out) {
    typedef typename Source::Value T;
    const long panels = (outputs + C - 1) / C;
    const long lines = sizeof(T) == 2 ? (depth + 1) / 2 : depth;
    const bool stored = Source::LINE == C * 4;
    const long parts = rows * outputs * depth < ALONE ? 1 : PARTS;
    parallel_runs(panels, parts, [&](long p) {
        const char* from = packed + p * lines * Source::LINE;
        const T* panel = Source::panel(from, lines);
        const int columns = int(p + 1 == panels ? outputs - p * C : C);
        for (long first = 0; first < rows; first += BLOCK) {
            const long block = rows - first < BLOCK ? rows - first : BLOCK;
            const long tiles = (block + ROWS - 1) / ROWS;
            for (long t = 0; t < tiles; t++) {  // tiles of nearly equal height
                const long low = first + block * t / tiles, high = first + block * (t + 1) / tiles;
                const long share = Source::LINE / tiles;
                const Fetch fetch{tiles == 1 && stored ? from + AHEAD : from + lines * (Source::LINE + t * share), share};
                rows_times_panel<X, T>(high - low, x + low * depth, depth, panel, bias ? bias + p * C : nullptr,
                                    out + low * outputs + p * C, outputs, columns, fetch);
            }
        }
    });
}

#if defined(__AVX512BF16__)
// The same with rows rounded to bfloat16, [rows][K / 2][2]: an odd depth is filled up with a zero, as the weights are.
template <class Source>
static void multiply_rounded(const float* x, long rows, long depth, const char* packed, long outputs, const float* bias, float* out) {
    static thread_local std::vector<bf16> room;  // grows to the largest batch
    const long even = (depth + 1) / 2 * 2;
    if (room.size() < size_t(rows * even)) room.resize(rows * even);
    bf16* rounded = room.data();
    parallel_runs(rows, rows * depth > (1 << 14) ? PARTS : 1, [&](long r) {
        for (long k = 0; k < depth; k += W) {
            const __mmask16 valid = depth - k >= W ? 0xffff : __mmask16((1u << (depth - k)) - 1);
            const __m256bh part = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(valid, x + r * depth + k));
            _mm256_mask_storeu_epi16(rounded + r * even + k, valid, (__m256i)part);
        }
        if (even > depth) rounded[r * even + depth] = 0;
    });
    multiply<Source, bf16>(rounded, rows, even, packed, outputs, bias, out);
}
#endif

EXPORT int64_t panel_outputs() { return C; }

// Ask for huge pages, before first touch: a pass reads all weights, and page walks cost about a tenth of its time.
EXPORT void advise_huge(void* p, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 4096, from = ((uintptr_t)p + page - 1) / page * page, to = ((uintptr_t)p + bytes) / page * page;
    if (to > from) madvise((void*)from, to - from, MADV_HUGEPAGE);
#else
    (void)p, (void)bytes;
#endif
}

// Whether the processor has the matrix unit of amx.h and the system lets us use it.
EXPORT int64_t has_amx() {
#if defined(ADASERVE_AMX)
    return tiles::allowed();
#else
    return 0;
#endif
}

// Whether the processor multiplies pairs of bfloat16 numbers.
EXPORT int64_t has_dot() {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

// Whether it multiplies fours of bytes, for vnni.h.
EXPORT int64_t has_vnni() {
#if defined(ADASERVE_VNNI)
    return 1;
#else
    return 0;
#endif
}

// Rows of a batch from which on int8_tiles.h multiplies in place of vnni.h; 0 where it never does.
EXPORT int64_t int8_tile_rows() {
#if defined(ADASERVE_INT8_TILES)
    return vnni::by_tiles(vnni::FROM) ? vnni::FROM : 0;
#else
    return 0;
#endif
}

// Whether there are kernels that expand blocks: AVX2 and NEON gain too little from them.
EXPORT int64_t expands_blocks() {
#if defined(__AVX512BW__)
    return 1;
#else
    return 0;
#endif
}

// The vectors that everything else is computed with.
EXPORT const char* instructions() {
#if defined(__AVX512F__)
    return "avx512";
#elif defined(__AVX2__)
    return "avx2";
#elif defined(__ARM_NEON)
    return "neon";
#else
    return "narrow vectors";
#endif
}

// x [rows, depth], out [rows, outputs]: outputs may be fewer than were packed.
#define LINEAR(NAME, MULTIPLY)                                                                                                  \
    EXPORT void NAME(const float* x, int64_t rows, int64_t depth, const char* packed, int64_t outputs, const float* bias,        \
                     float* out) {                                                                                               \
        MULTIPLY(x, rows, depth, packed, outputs, bias, out);                                                                    \
    }

LINEAR(fma_float, (multiply<Stored<float>, float>))
LINEAR(fma_bf16, (multiply<Stored<bf16>, float>))
#if defined(__AVX512BW__)
LINEAR(fma_nibbles, (multiply<Expanded<Nibbles>, float>))
LINEAR(fma_bytes, (multiply<Expanded<Bytes>, float>))
#endif
#if defined(__AVX512BF16__)
LINEAR(dot_bf16, multiply_rounded<Stored<bf16>>)
LINEAR(dot_nibbles, multiply_rounded<Expanded<Nibbles>>)
LINEAR(dot_bytes, multiply_rounded<Expanded<Bytes>>)
#endif
#if defined(ADASERVE_VNNI)
// By vectors for few rows, by tiles for many: the bits are the same.
template <class Format>
static void multiply_bytes(const float* x, long rows, long depth, const char* packed, long outputs, const float* bias, float* out) {
#if defined(ADASERVE_INT8_TILES)
    if (vnni::by_tiles(rows)) return vnni::multiply_tiles<Format>(x, rows, depth, packed, outputs, bias, out);
#endif
    vnni::multiply<Format>(x, rows, depth, packed, outputs, bias, out);
}

LINEAR(int8_nibbles, multiply_bytes<vnni::Nibbles>)
LINEAR(int8_bytes, multiply_bytes<vnni::Bytes>)
#endif
#if defined(ADASERVE_AMX)
LINEAR(amx_bf16, amx::multiply<amx::Plain>)
LINEAR(amx_nibbles, amx::multiply<Nibbles>)
LINEAR(amx_bytes, amx::multiply<Bytes>)
#endif
