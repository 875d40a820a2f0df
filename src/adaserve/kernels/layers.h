// The kernels and weights of a decoder's layers, and the rows of a pass over them, as addresses: words of 64 bits each, as
// models/native_layers.py fills them in.
#pragma once

#include <vector>

#include "parallel.h"

typedef void (*Multiply)(const float* x, int64_t rows, int64_t depth, const char* packed, int64_t outputs, const float* bias, float* out);
typedef void (*AddNorm)(const float* x, const float* residual, const float* weight, int64_t rows, int64_t width, double eps, float* out,
                        float* total);
typedef void (*Gate)(const float* gate_up, int64_t rows, int64_t width, float* out);
typedef void (*Rotate)(const float* qkv, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, const float* cos,
                       const float* sin, const int64_t* position, const int64_t* dest, void* keys, void* values, const float* q_norm,
                       const float* k_norm, double eps, float* q);
typedef void (*Attend)(const float* q, int64_t heads, int64_t kv_heads, int64_t head_dim, const void* keys, const void* values,
                       int64_t groups, const int64_t* start, const int64_t* slot, const int64_t* prefix, const int64_t* mask,
                       const int64_t* table, int64_t per_slot, int64_t page_size, int64_t tail_start, double scale, float* out);

struct Product {
    Multiply multiply;
    const char* panels;
    const float* bias;

    void operator()(const float* x, int64_t rows, int64_t depth, int64_t outputs, float* out) const {
        multiply(x, rows, depth, panels, outputs, bias, out);
    }
};

struct Layer {
    Product qkv, output, gate_up, down;
    const float *q_norm, *k_norm, *mlp_norm, *next_norm;
};

struct Shape {
    int64_t layers, hidden, heads, kv_heads, head_dim, intermediate;
    const float *cos, *sin;
};

struct Pass {
    AddNorm add_norm;
    Gate gate;
    Rotate rotate;
    Attend attend;
    char *keys, *values;
    int64_t layer_bytes;  // from a layer's keys to the next one's
    int64_t rows;
    const int64_t *position, *dest, *prefix, *mask;
    int64_t groups;
    const int64_t *start, *slot, *table;
    int64_t per_slot, page_size, tail_start;
};

typedef void (*RunLayers)(const Layer* layers, const Shape* shape, const Pass* pass, double eps, double scale, float* x, float* residual);

// A buffer that grows to the largest pass.
template <class T>
static T* room(std::vector<T>& store, int64_t n) {
    if (int64_t(store.size()) < n) store.resize(n);
    return store.data();
}
