// All layers of a decoder in one call: the kernels of the other libraries, called one after the other by their addresses, with
// what goes from one to the next in buffers of the calling thread. Nothing is computed here, so every bit is what the kernels give.
//
// A pass of 30 layers is 270 calls of a few microseconds to some hundred each; from Python every one would cost two to four more.
#include "layers.h"

// x [rows, hidden] holds the rows after the first norm, and after the last one at the end; residual [rows, hidden] is written too.
EXPORT void run_layers(const Layer* layers, const Shape* shape, const Pass* pass, double eps, double scale, float* x, float* residual) {
    static thread_local std::vector<float> wide_room, query_room, narrow_room;  // they grow to the largest pass
    const int64_t rows = pass->rows, hidden = shape->hidden, heads = shape->heads, kv_heads = shape->kv_heads, deep = shape->head_dim;
    const int64_t inner = shape->intermediate, qkv = (heads + 2 * kv_heads) * deep, attended = heads * deep;
    float* wide = room(wide_room, rows * (qkv > 2 * inner ? qkv : 2 * inner));
    float* query = room(query_room, rows * (attended > hidden ? attended : hidden));
    float* narrow = room(narrow_room, rows * (attended > inner ? attended : inner));
    for (int64_t i = 0; i < shape->layers; i++) {
        const Layer& layer = layers[i];
        char *keys = pass->keys + i * pass->layer_bytes, *values = pass->values + i * pass->layer_bytes;
        layer.qkv(x, rows, hidden, qkv, wide);
        pass->rotate(wide, rows, heads, kv_heads, deep, shape->cos, shape->sin, pass->position, pass->dest, keys, values, layer.q_norm,
                     layer.k_norm, eps, query);
        pass->attend(query, heads, kv_heads, deep, keys, values, pass->groups, pass->start, pass->slot, pass->prefix, pass->mask,
                     pass->table, pass->per_slot, pass->page_size, pass->tail_start, scale, narrow);
        layer.output(narrow, rows, attended, hidden, query);
        pass->add_norm(query, residual, layer.mlp_norm, rows, hidden, eps, x, residual);
        layer.gate_up(x, rows, hidden, 2 * inner, wide);
        pass->gate(wide, rows, inner, narrow);
        layer.down(narrow, rows, inner, hidden, query);
        pass->add_norm(query, residual, layer.next_norm, rows, hidden, eps, x, residual);
    }
}
