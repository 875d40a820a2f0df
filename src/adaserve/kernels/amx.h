// y = x W^T + b in the tiles of AMX: x is rounded to bfloat16, products are exact, sums are float32.
//
// A tile holds 16 rows of 64 bytes. TDPBF16PS adds a product of two tiles to a third; weights are the left factor, as they lie
//
//     sums [16 outputs][width]  +=  weights [16 outputs][32 k]  *  x [16 pairs of k][width][2]
//
// and the columns of x and of the sums are rows of the batch, up to 16 of them, a *group*. A column's sum takes the same
// instructions in the same order whatever stands in the other columns and however many there are: first within 32 k's, then
// over them. The sums are turned into rows at the end.
//
// Packed weights: [N / C][K / 32] steps, each [C][32] in bfloat16 or as a block format of blocks.h, expanded in L1.
#pragma once

#include "blocks.h"
#include "tiles.h"

#if defined(ADASERVE_TILES) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__)
#define ADASERVE_AMX 1

#include <vector>

namespace amx {

constexpr int GROUP = 16;           // rows of the batch at most in a tile
constexpr long CHUNK = 10;          // steps at most that stay expanded, in 30 KB of the first level cache
constexpr long GROUPS = 16;         // groups that share one reading and one expansion of a panel
constexpr int WEIGHTS = 6, X = 7;   // tiles; 0 to 5 are sums

struct alignas(64) Line {
    bf16 word[32];
};

using tiles::load;
using tiles::store;
using tiles::zero;

template <int SUM>
static inline void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(WEIGHTS), "i"(X));
}

static void shape(tiles::Shapes& shapes, long width) {
    for (int t = 0; t < 8; t++) shapes.set(t, 16, t == WEIGHTS ? 64 : 4 * width);
    shapes.use();
}

// The batch as right factors: groups of nearly equal width, [groups][K / 32][16 pairs of k][width][2].
struct Batch {
    long rows, groups, width, steps;
    bf16* at;

    Batch(const float* x, long rows, long depth)
        : rows(rows), groups((rows + GROUP - 1) / GROUP), width((rows + groups - 1) / groups), steps((depth + DEEP - 1) / DEEP) {
        static thread_local std::vector<Line> room;  // grows to the largest batch
        if (room.size() < size_t(groups * steps * width)) room.resize(groups * steps * width);
        at = room.data()->word;
        parallel_runs(groups * steps, rows * depth > (1 << 15) ? PARTS : 1, [&](long i) { pack(x, depth, i / steps, i % steps); });
    }

    bf16* factor(long group, long step) const { return at + (group * steps + step) * width * DEEP; }

    void pack(const float* x, long depth, long group, long step) const {
        const long left = depth - step * DEEP;
        const __mmask32 valid = left >= DEEP ? ~0u : (1u << left) - 1;
        __m512i m[GROUP];
        for (long r = 0; r < GROUP; r++) {
            const long row = group * width + r;
            if (r >= width || row >= rows) {
                m[r] = _mm512_setzero_si512();
                continue;
            }
            const float* from = x + row * depth + step * DEEP;
            m[r] = to_bf16(_mm512_maskz_loadu_ps(__mmask16(valid), from), _mm512_maskz_loadu_ps(__mmask16(valid >> 16), from + W));
        }
        bf16* to = factor(group, step);
        if (width == 1) return _mm512_store_si512(to, m[0]);
        transpose(m);
        const __mmask16 columns = __mmask16((1u << width) - 1);
        for (int pair = 0; pair < 16; pair++) _mm512_mask_storeu_epi32(to + pair * width * 2, columns, m[pair]);
    }
};

struct Sums {
    alignas(64) float of[V][16 * GROUP];  // 3 x 16 outputs, [16][width] each
};

// Bfloat16 weights are multiplied where they lie, blocks where they were expanded to: step s in place s % CHUNK of a room.
struct Plain {
    static constexpr long BYTES = C * DEEP * 2;
    static inline void expand(const char*, int, bf16*) {}
};

template <class Format>
static inline const bf16* expanded(const char*, const bf16* room, long step) { return room + step % CHUNK * C * DEEP; }
template <>
inline const bf16* expanded<Plain>(const char* from, const bf16*, long step) { return (const bf16*)(from + step * Plain::BYTES); }

// One or two groups times `steps` steps of a panel; the sums begin at zero or go on. The first groups to come find the steps
// as they are stored and expand each while the tiles multiply by the one before.
template <class Format, int R, bool FIRST>
static void accumulate(const char* from, bf16* room, const bf16* (&x)[2], long steps, long width, bool go_on, Sums* sums) {
    const long stride = 4 * width;
    if (go_on) {
        load<0>(sums[0].of[0], stride), load<1>(sums[0].of[1], stride), load<2>(sums[0].of[2], stride);
        if (R == 2) load<3>(sums[1].of[0], stride), load<4>(sums[1].of[1], stride), load<5>(sums[1].of[2], stride);
    } else {
        zero<0>(), zero<1>(), zero<2>();
        if (R == 2) zero<3>(), zero<4>(), zero<5>();
    }
    if (FIRST)
        for (int v = 0; v < V; v++) Format::expand(from, v, room);
    for (long s = 0; s < steps; s++) {
        const bf16* w = expanded<Format>(from, room, s);
        const char* next = from + (s + 1) * Format::BYTES;
        bf16* to = room + (s + 1) % CHUNK * C * DEEP;
        const bool more = FIRST && s + 1 < steps;
        const long at = s * width * DEEP;
        load<X>(x[0] + at, stride);
        load<WEIGHTS>(w, 64), multiply_add<0>();
        if (more) Format::expand(next, 0, to);
        load<WEIGHTS>(w + 16 * DEEP, 64), multiply_add<1>();
        if (R == 1 && more) Format::expand(next, 1, to);
        load<WEIGHTS>(w + 32 * DEEP, 64), multiply_add<2>();
        if (R == 1 && more) Format::expand(next, 2, to);
        if (R == 2) {
            load<X>(x[1] + at, stride);
            multiply_add<5>();
            if (more) Format::expand(next, 1, to);
            load<WEIGHTS>(w, 64), multiply_add<3>();
            if (more) Format::expand(next, 2, to);
            load<WEIGHTS>(w + 16 * DEEP, 64), multiply_add<4>();
        }
    }
    store<0>(sums[0].of[0], stride), store<1>(sums[0].of[1], stride), store<2>(sums[0].of[2], stride);
    if (R == 2) store<3>(sums[1].of[0], stride), store<4>(sums[1].of[1], stride), store<5>(sums[1].of[2], stride);
}

// Sums of one group, [16 outputs][width], to rows of `out`.
static void finish(const Sums& sums, long width, long rows, long columns, const float* bias, float* out, long stride) {
    const __mmask16 wide = __mmask16((1u << width) - 1);
    for (int v = 0; v < V && v * W < columns; v++) {
        const __mmask16 valid = columns - v * W >= W ? 0xffff : __mmask16((1u << (columns - v * W)) - 1);
        const __m512 b = bias ? _mm512_maskz_loadu_ps(valid, bias + v * W) : _mm512_setzero_ps();
        __m512i m[16];
        if (width == 1) {
            m[0] = _mm512_load_si512(sums.of[v]);
        } else {
            for (int o = 0; o < 16; o++) m[o] = _mm512_maskz_loadu_epi32(wide, sums.of[v] + o * width);
            transpose(m);
        }
        for (long r = 0; r < rows; r++) _mm512_mask_storeu_ps(out + r * stride + v * W, valid, _mm512_add_ps((__m512)m[r], b));
    }
}

template <class Format>
static void multiply(const float* x, long rows, long depth, const char* packed, long outputs, const float* bias, float* out) {
    if (rows == 0) return;
    const Batch batch(x, rows, depth);
    const long panels = (outputs + C - 1) / C, width = batch.width;
    const long parts = rows * outputs * depth < ALONE ? 1 : PARTS < panels ? PARTS : panels;
    parallel(parts, [&](long part) {
        tiles::Shapes shapes;
        shape(shapes, width);
        alignas(64) bf16 room[CHUNK * C * DEEP];
        Sums sums[GROUPS];
        for (long p = panels * part / parts; p < panels * (part + 1) / parts; p++)
            for (long first = 0; first < batch.groups; first += GROUPS) {
                const long groups = batch.groups - first < GROUPS ? batch.groups - first : GROUPS;
                const long chunks = groups <= 2 ? 1 : (batch.steps + CHUNK - 1) / CHUNK;  // what is read once need not stay
                for (long c = 0; c < chunks; c++) {
                    const long s = batch.steps * c / chunks, steps = batch.steps * (c + 1) / chunks - s;
                    const char* from = packed + (p * batch.steps + s) * Format::BYTES;
                    for (long g = 0; g < groups; g += 2) {
                        const bf16* pair[2] = {batch.factor(first + g, s), batch.factor(first + g + 1, s)};
                        const auto work = groups - g > 1 ? (g ? accumulate<Format, 2, false> : accumulate<Format, 2, true>)
                                                         : (g ? accumulate<Format, 1, false> : accumulate<Format, 1, true>);
                        work(from, room, pair, steps, width, s > 0, sums + g);
                    }
                }
                for (long g = 0; g < groups; g++) {
                    const long row = (first + g) * width, count = rows - row < width ? rows - row : width;
                    finish(sums[g], width, count, outputs - p * C, bias ? bias + p * C : nullptr, out + row * outputs + p * C, outputs);
                }
            }
    });
}

}  // namespace amx
#endif
