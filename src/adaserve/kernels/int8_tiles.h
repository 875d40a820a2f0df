// The products of vnni.h for many rows, in the matrix unit's tiles: the same function, bit for bit.
//
// A block's sums of products of codes are integers, so exact whoever adds them; TDPBSSD does it for 16 rows and 16 outputs:
//
//     sums [16 rows][16 outputs]  =  codes of x [16 rows][32 k]  *  codes of weights [8][16 outputs][4 k]
//
// A tile could be 64 k's deep, but blocks of 32 have a scale each. The sums go through the first level cache to the vectors, which
// bring scales and offsets in by the same fused operations in the same order as those of vnni.h. While they do so for one block,
// the matrix unit works on the next ones.
#pragma once

#include "tiles.h"
#include "vnni.h"

#if defined(ADASERVE_VNNI) && defined(ADASERVE_TILES) && defined(__AMX_INT8__)
#define ADASERVE_INT8_TILES 1

namespace vnni {

constexpr long GROUP = 16;           // rows of a tile
constexpr long FROM = 11;            // rows of a batch from which on tiles are faster than vectors
constexpr long FEW = 4;              // rows left over that vectors do faster than a tile; never a batch's first group
constexpr int X = 6, WEIGHTS = 7;    // tiles; 0 to 3 are sums
constexpr int RING = 4, LEAD = 2;    // places for sums; blocks that the matrix unit is ahead of the vectors

// A step of a panel as it is multiplied. Codes of bytes are signed again.
struct Step {
    alignas(64) int8_t code[8][64];
    float scale[W], offset[W];

    template <class Format>
    void expand(const char* head, const char* codes) {
        __m512i w[8];
        Format::load(codes, w);
        const __m512i sign = _mm512_set1_epi8(Format::OFFSET ? 0 : -128);
        UNROLL for (int g = 0; g < 8; g++) _mm512_store_si512(code[g], _mm512_xor_si512(w[g], sign));
        _mm512_store_ps(scale, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)head)));
        if (Format::OFFSET) _mm512_store_ps(offset, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(head + 32))));
    }
};

struct alignas(64) Sums {
    int32_t of[GROUP][W];
};

template <int T>
static inline void multiply_block(const int8_t* x, const Step& step, Sums* ring) {
    tiles::load<X>(x, DEPTH);
    tiles::load<WEIGHTS>(step.code, 64);
    tiles::zero<T>();
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(T), "i"(X), "i"(WEIGHTS));
    tiles::store<T>(ring[T].of, 64);
}

static inline void multiply_block(long s, const int8_t* x, const Step& step, Sums* ring) {
    switch (s % RING) {
        case 0: return multiply_block<0>(x, step, ring);
        case 1: return multiply_block<1>(x, step, ring);
        case 2: return multiply_block<2>(x, step, ring);
        case 3: return multiply_block<3>(x, step, ring);
    }
}

// A group of rows times one panel. The first group to come finds the panel as it is stored, and expands each step some blocks before
// it is multiplied. `fetch` are bytes for later, a share of them at every step.
template <class Format, bool FIRST>
static void group_times_panel(long rows, Rows x, long steps, const char* head, const char* codes, Step* panel, __mmask16 valid,
                              __m512 bias, float* out, long stride, const char* fetch, long share) {
    Sums ring[RING];
    __m512 total[GROUP];
    UNROLL for (int r = 0; r < GROUP; r++) total[r] = bias;
    const auto expand = [&](long s) { panel[s].expand<Format>(head + s * Format::HEAD, codes + s * Format::CODES); };
    if (FIRST)
        for (long s = 0; s <= LEAD && s < steps; s++) expand(s);
    for (long s = 0; s < LEAD && s < steps; s++) multiply_block(s, x.code + s * GROUP * DEPTH, panel[s], ring);
    for (long s = 0; s < steps; s++) {
        for (long line = 0; line < share; line += 64) _mm_prefetch(fetch + s * share + line, _MM_HINT_T1);
        if (FIRST && s + LEAD + 1 < steps) expand(s + LEAD + 1);
        if (s + LEAD < steps) multiply_block(s + LEAD, x.code + (s + LEAD) * GROUP * DEPTH, panel[s + LEAD], ring);
        const Sums& sums = ring[s % RING];
        const Side* side = x.side + s * GROUP;
        const __m512 scale = _mm512_load_ps(panel[s].scale), offset = _mm512_load_ps(panel[s].offset);
        UNROLL for (int r = 0; r < GROUP; r++) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums.of[r]));
            total[r] = _mm512_fmadd_ps(sum, _mm512_mul_ps(scale, _mm512_set1_ps(side[r].scale)), total[r]);
            if (Format::OFFSET) total[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(side[r].sum), total[r]);
        }
    }
    UNROLL for (int r = 0; r < GROUP; r++)
        if (r < rows) _mm512_mask_storeu_ps(out + r * stride, valid, total[r]);
}

template <class Format>
static void multiply_tiles(const float* x, long rows, long depth, const char* packed, long outputs, const float* bias, float* out) {
    const Batch batch(x, rows, depth, GROUP);
    const long steps = batch.steps, panels = (outputs + W - 1) / W, groups = (rows + GROUP - 1) / GROUP;
    const long heads = (steps * Format::HEAD + 63) / 64 * 64, bytes = heads + steps * Format::CODES;
    const long share = (bytes / (groups * steps) + 63) / 64 * 64;  // of the next panel, fetched at every step
    const long parts = rows * outputs * depth < ALONE ? 1 : PARTS < panels ? PARTS : panels;
    parallel(parts, [&](long part) {
        static thread_local std::vector<Step> room;  // grows to the deepest panel
        if (room.size() < size_t(steps)) room.resize(steps);
        tiles::Shapes shapes;
        for (int t = 0; t < 8; t++) shapes.set(t, t == WEIGHTS ? 8 : 16, t == X ? DEPTH : 64);
        shapes.use();
        for (long p = panels * part / parts; p < panels * (part + 1) / parts; p++) {
            const char *head = packed + p * bytes, *codes = head + heads;
            const __mmask16 valid = outputs - p * W >= W ? 0xffff : __mmask16((1u << (outputs - p * W)) - 1);
            const __m512 from = bias ? _mm512_maskz_loadu_ps(valid, bias + p * W) : _mm512_setzero_ps();
            for (long g = 0; g < groups; g++) {
                const long first = g * GROUP, count = rows - first < GROUP ? rows - first : GROUP;
                float* to = out + first * outputs + p * W;
                const auto group = g ? group_times_panel<Format, false> : group_times_panel<Format, true>;
                if (count <= FEW)
                    rows_times_panel<Format>(count, batch.from(first), steps, head, codes, valid, from, to, outputs);
                else
                    group(count, batch.from(first), steps, head, codes, room.data(), valid, from, to, outputs,
                          head + bytes + g * steps * share, share);
            }
        }
    });
}

// Whether a batch of so many rows goes through tiles here.
static inline bool by_tiles(long rows) {
    static const bool allowed = tiles::allowed();
    return rows >= FROM && allowed;
}

}  // namespace vnni
#endif
