// Packing and walking of candidate trees (kernels/trees.py), a few dozen rows at a time.
#include "parallel.h"

// token, parent, source [n, columns], chosen [n, columns] bool, root [n]. count [n]: chosen nodes. size [2]: packed rows B, and the
// most nodes of a request. out: token, parent, row, depth, node, mask, column, source [B] each, one after the other.
EXPORT void pack_trees(const int64_t* token, const int64_t* parent, const int64_t* source, const uint8_t* chosen, const int64_t* root,
                       int64_t n, int64_t columns, int64_t* count, int64_t* size, int64_t* out) {
    int64_t rows = n, most = 0;
    for (int64_t i = 0; i < n; i++) {
        count[i] = 0;
        for (int64_t j = 0; j < columns; j++) count[i] += chosen[i * columns + j];
        rows += count[i];
        most = count[i] > most ? count[i] : most;
    }
    size[0] = rows;
    size[1] = most;
    if (most > 63) return;  // its masks would not fit
    int64_t *tokens = out, *parents = out + rows, *row = out + 2 * rows, *depth = out + 3 * rows, *node = out + 4 * rows;
    int64_t *mask = out + 5 * rows, *column = out + 6 * rows, *sources = out + 7 * rows, at = 0;
    int64_t place[columns + 1];  // packed rows of the root and of the chosen columns
    for (int64_t i = 0; i < n; i++) {
        const int64_t first = at;
        for (int64_t j = -1; j < columns; j++) {
            const int64_t cell = i * columns + j;
            if (j >= 0 && !chosen[cell]) continue;
            const int64_t above = j < 0 ? at : place[parent[cell] + 1];
            place[j + 1] = at;
            tokens[at] = j < 0 ? root[i] : token[cell];
            parents[at] = above;
            row[at] = i;
            depth[at] = j < 0 ? 0 : depth[above] + 1;
            node[at] = j < 0 ? 0 : at - first - 1;
            mask[at] = j < 0 ? 0 : mask[above] | int64_t(1) << node[at];
            column[at] = j < 0 ? 0 : j;
            sources[at] = j < 0 ? 0 : source[cell];
            at++;
        }
    }
}

// token, parent, row, depth, drawn [rows] of packed trees, parents first. accepted [rows] bool; tokens [n, width], length [n].
EXPORT void walk_trees(const int64_t* token, const int64_t* parent, const int64_t* row, const int64_t* depth, const int64_t* drawn,
                       int64_t rows, int64_t n, int64_t width, uint8_t* accepted, int64_t* tokens, int64_t* length) {
    for (int64_t i = 0; i < n * width; i++) tokens[i] = 0;
    for (int64_t i = 0; i < n; i++) length[i] = 0;
    for (int64_t at = 0; at < rows; at++) {
        const int64_t above = parent[at];  // a row of padding is its own parent, and no root
        accepted[at] = depth[at] == 0 || (depth[at] < width && above < at && accepted[above] && token[at] == drawn[above]);
        if (!accepted[at]) continue;
        tokens[row[at] * width + depth[at]] = drawn[at];
        length[row[at]]++;
    }
}

// parent, path_prob, edge [n, columns]: a node's share of its parent's path_prob, 0 for padding.
EXPORT void edge_prob(const int64_t* parent, const double* path_prob, int64_t n, int64_t columns, double* edge) {
    for (int64_t i = 0; i < n; i++, parent += columns, path_prob += columns, edge += columns)
        for (int64_t j = 0; j < columns; j++)
            edge[j] = path_prob[j] > 0 ? path_prob[j] / (parent[j] < 0 ? 1.0 : path_prob[parent[j]]) : 0.0;
}
