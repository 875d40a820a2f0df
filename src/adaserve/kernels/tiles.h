// The matrix unit's tiles (AMX), for products of bfloat16 (amx.h) and of bytes (int8_tiles.h): permission, shapes, instructions.
#pragma once

#if defined(__AMX_TILE__) && defined(__linux__)
#define ADASERVE_TILES 1

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace tiles {

// Linux hands out the tiles' 8 KB of state on request, once for a process and its children.
static inline bool allowed() {
    constexpr long ask = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, ask, tile_data) == 0;
}

template <int T>
static inline void load(const void* from, long stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(stride) : "memory");
}

template <int T>
static inline void store(void* to, long stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(stride) : "memory");
}

template <int T>
static inline void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}

// The shapes of a thread's eight tiles, for as long as it works on one run of panels.
struct Shapes {
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } of;

    void set(int tile, int rows, long row_bytes) {
        of.rows[tile] = uint8_t(rows);
        of.row_bytes[tile] = uint16_t(row_bytes);
    }
    void use() const { asm volatile("ldtilecfg %0" ::"m"(of)); }
    ~Shapes() { asm volatile("tilerelease"); }
};

}  // namespace tiles
#endif
