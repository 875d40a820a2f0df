// Where the rows of a pass stand (kernels/places.py): index arithmetic over a few dozen rows, written as the arrays of a ForwardBatch,
// one after the other.
#include "parallel.h"

constexpr int64_t TAIL_ROWS = 64;

struct Pages {
    const int64_t* pages;
    int64_t per_slot, page_size;
    int64_t row(int64_t slot, int64_t position) const {
        return pages[slot * per_slot + position / page_size] * page_size + position % page_size;
    }
};

// chunks [3, count]: slots, starts, lengths. out: token, position, prefix, mask, dest [rows] each, start [count + 1], slot [count].
EXPORT void known_rows(const int64_t* chunks, int64_t count, const int64_t* tokens, int64_t length, const int64_t* pages, int64_t per_slot,
                       int64_t page_size, int64_t rows, int64_t* out) {
    const Pages table{pages, per_slot, page_size};
    int64_t *start = out + 5 * rows, *slots = start + count + 1, row = 0;
    for (int64_t c = 0; c < count; c++) {
        const int64_t slot = chunks[c], first = chunks[count + c], last = first + chunks[2 * count + c];
        start[c] = row;
        slots[c] = slot;
        for (int64_t position = first; position < last; position++, row++) {
            out[row] = tokens[slot * length + position];
            out[rows + row] = position;
            out[2 * rows + row] = position + 1;
            out[3 * rows + row] = 0;
            out[4 * rows + row] = table.row(slot, position);
        }
    }
    start[count] = row;
}

// slot [n], tail [width]. out: position, prefix, dest [n * width] each, start [n + 1].
EXPORT void beam_rows(const int64_t* slot, int64_t n, const int64_t* tail, int64_t width, const int64_t* known, int64_t depth,
                      int64_t tail_start, int64_t* out) {
    const int64_t rows = n * width;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t owner = slot[row / width];
        out[row] = known[owner] - 1 + depth;
        out[rows + row] = known[owner];
        out[2 * rows + row] = tail_start + owner * TAIL_ROWS + tail[row % width];
    }
    for (int64_t i = 0; i <= n; i++) out[3 * rows + i] = i * width;
}

// request, depth, node [rows] and count [n] of packed trees without padding; slot [n]. out: position, prefix, dest [rows] each,
// start [n + 1].
EXPORT void tree_rows(const int64_t* request, const int64_t* depth, const int64_t* node, int64_t rows, const int64_t* count,
                      const int64_t* slot, int64_t n, const int64_t* known, const int64_t* pages, int64_t per_slot, int64_t page_size,
                      int64_t tail_start, int64_t* out) {
    const Pages table{pages, per_slot, page_size};
    for (int64_t row = 0; row < rows; row++) {
        const int64_t owner = slot[request[row]], prefix = known[owner];
        out[row] = prefix - 1 + depth[row];
        out[rows + row] = prefix;
        out[2 * rows + row] = depth[row] ? tail_start + owner * TAIL_ROWS + node[row] : table.row(owner, prefix - 1);
    }
    int64_t start = 0;
    for (int64_t i = 0; i < n; i++) {
        out[3 * rows + i] = start;
        start += count[i] + 1;
    }
    out[3 * rows + n] = start;
}

// accepted [rows] bool; request, depth, place [rows] of packed trees without padding. out [2 * rows]: the pool rows that accepted
// ones move from, from 0 on, and those that they move to, from `rows` on; moved [1]: how many.
EXPORT void moved_rows(const uint8_t* accepted, const int64_t* request, const int64_t* depth, const int64_t* place, int64_t rows,
                       const int64_t* slot, const int64_t* known, const int64_t* pages, int64_t per_slot, int64_t page_size,
                       int64_t tail_start, int64_t* out, int64_t* moved) {
    const Pages table{pages, per_slot, page_size};
    int64_t count = 0;
    for (int64_t row = 0; row < rows; row++) {
        if (!accepted[row]) continue;
        const int64_t owner = slot[request[row]];
        out[count] = tail_start + owner * TAIL_ROWS + place[row];
        out[rows + count++] = table.row(owner, known[owner] - 1 + depth[row]);
    }
    *moved = count;
}

// Append gained [n, width], of which count [n] are known from now on, to the tokens [slots, length] of slot [n].
EXPORT void gain_tokens(const int64_t* slot, int64_t n, const int64_t* gained, int64_t width, const int64_t* count, int64_t* tokens,
                        int64_t length, int64_t* known) {
    for (int64_t i = 0; i < n; i++) {
        int64_t* to = tokens + slot[i] * length + known[slot[i]];
        for (int64_t j = 0; j < width; j++) to[j] = gained[i * width + j];
        known[slot[i]] += count[i];
    }
}

// last [n]: the last known token of every slot [n].
EXPORT void last_tokens(const int64_t* slot, int64_t n, const int64_t* tokens, int64_t length, const int64_t* known, int64_t* last) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t count = known[slot[i]];
        last[i] = tokens[slot[i] * length + (count ? count : length) - 1];
    }
}
