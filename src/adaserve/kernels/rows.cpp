// What happens to single rows between the matrix products: norms, the gate, rotation and the write into the pool.
// Every row is computed alone and always in the same order.
#include <vector>

#include "simd.h"

// Into how many parts to cut the work: below some thousand values a second thread costs more than it brings.
static inline int64_t parts(int64_t values) { return values > (1 << 14) ? 4 : 1; }

// Sum of squares in four interleaved chains, then a fixed tree.
static float square_sum(const float* x, int64_t n) {
    vfloat sum[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        UNROLL for (int c = 0; c < 4; c++) {
            vfloat v = load(x + i + c * W);
            sum[c] += v * v;
        }
    for (; i + W <= n; i += W) {
        vfloat v = load(x + i);
        sum[0] += v * v;
    }
    float total = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (; i < n; i++) total += x[i] * x[i];
    return total;
}

static void norm_row(const float* x, const float* weight, int64_t n, double eps, float* out) {
    const float scale = float(1.0 / std::sqrt(double(square_sum(x, n)) / double(n) + eps));
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, load(x + i) * scale * load(weight + i));
    for (; i < n; i++) out[i] = x[i] * scale * weight[i];
}

EXPORT void rms_norm(const float* x, const float* weight, int64_t rows, int64_t width, double eps, float* out) {
    parallel_runs(rows, parts(rows * width), [&](int64_t r) { norm_row(x + r * width, weight, width, eps, out + r * width); });
}

EXPORT void add_rms_norm(const float* x, const float* residual, const float* weight, int64_t rows, int64_t width, double eps, float* out,
                         float* total) {
    parallel_runs(rows, parts(rows * width), [&](int64_t r) {
        const float *a = x + r * width, *b = residual + r * width;
        float* t = total + r * width;
        int64_t i = 0;
        for (; i + W <= width; i += W) store(t + i, load(a + i) + load(b + i));
        for (; i < width; i++) t[i] = a[i] + b[i];
        norm_row(t, weight, width, eps, out + r * width);
    });
}

static inline vfloat silu(vfloat x) { return x / (1.0f + exponential(-x)); }

EXPORT void silu_mul(const float* gate_up, int64_t rows, int64_t width, float* out) {
    parallel_runs(rows, parts(4 * rows * width), [&](int64_t r) {
        const float *gate = gate_up + r * 2 * width, *up = gate + width;
        float* y = out + r * width;
        int64_t i = 0;
        for (; i + W <= width; i += W) store(y + i, silu(load(gate + i)) * load(up + i));
        if (i < width) {
            float edge[W] = {};
            std::memcpy(edge, gate + i, (width - i) * sizeof(float));
            store(edge, silu(load(edge)));
            for (int64_t j = i; j < width; j++) y[j] = edge[j - i] * up[j];
        }
    });
}

// Half rotation: pairs (j, j + half).
template <class T>
static void rotate_head(const float* x, const float* cos, const float* sin, int64_t half, T* out) {
    int64_t j = 0;
    for (; j + W <= half; j += W) {
        const vfloat a = load(x + j), b = load(x + half + j), c = load(cos + j), s = load(sin + j);
        store(out + j, a * c - b * s);
        store(out + half + j, b * c + a * s);
    }
    for (; j < half; j++) {
        const float a = x[j], b = x[half + j];
        store_one(out + j, a * cos[j] - b * sin[j]);
        store_one(out + half + j, b * cos[j] + a * sin[j]);
    }
}

template <class T>
static void copy_row(const float* x, int64_t n, T* out) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, load(x + i));
    for (; i < n; i++) store_one(out + i, x[i]);
}

template <class T>
static void rotate(const float* qkv, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, const float* cos, const float* sin,
                   const int64_t* position, const int64_t* dest, T* keys, T* values, const float* q_norm, const float* k_norm, double eps,
                   float* q) {
    const int64_t half = head_dim / 2, row_width = (heads + 2 * kv_heads) * head_dim;
    parallel_runs(rows, parts(rows * row_width), [&](int64_t r) {
        float normed[(q_norm || k_norm) ? head_dim : 1];
            const float* row = qkv + r * row_width;
            const float *c = cos + position[r] * half, *s = sin + position[r] * half;
            for (int64_t h = 0; h < heads + kv_heads; h++) {
                const float* x = row + h * head_dim;
                const float* weight = h < heads ? q_norm : k_norm;
                if (weight) {
                    norm_row(x, weight, head_dim, eps, normed);
                    x = normed;
                }
                if (h < heads)
                    rotate_head(x, c, s, half, q + (r * heads + h) * head_dim);
                else
                    rotate_head(x, c, s, half, keys + (dest[r] * kv_heads + h - heads) * head_dim);
            }
            copy_row(row + (heads + kv_heads) * head_dim, kv_heads * head_dim, values + dest[r] * kv_heads * head_dim);
    });
}

EXPORT void rotate_float(const float* qkv, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, const float* cos,
                         const float* sin, const int64_t* position, const int64_t* dest, float* keys, float* values, const float* q_norm,
                         const float* k_norm, double eps, float* q) {
    rotate(qkv, rows, heads, kv_heads, head_dim, cos, sin, position, dest, keys, values, q_norm, k_norm, eps, q);
}

EXPORT void rotate_bf16(const float* qkv, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, const float* cos,
                        const float* sin, const int64_t* position, const int64_t* dest, bf16* keys, bf16* values, const float* q_norm,
                        const float* k_norm, double eps, float* q) {
    rotate(qkv, rows, heads, kv_heads, head_dim, cos, sin, position, dest, keys, values, q_norm, k_norm, eps, q);
}

// In every layer of a pool [layers, rows, row_bytes], copy rows `source` to rows `dest`: all are read before any is written.
EXPORT void move_rows(char* pool, int64_t layers, int64_t rows, int64_t row_bytes, const int64_t* source, const int64_t* dest,
                      int64_t count) {
    parallel_runs(layers, parts(layers * count * row_bytes / 4), [&](int64_t layer) {
        static thread_local std::vector<char> held;
        char* base = pool + layer * rows * row_bytes;
        held.resize(count * row_bytes);
        for (int64_t i = 0; i < count; i++) std::memcpy(held.data() + i * row_bytes, base + source[i] * row_bytes, row_bytes);
        for (int64_t i = 0; i < count; i++) std::memcpy(base + dest[i] * row_bytes, held.data() + i * row_bytes, row_bytes);
    });
}
