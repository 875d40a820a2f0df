// parallel(count, f) runs f(0) ... f(count - 1) on the threads of crew.cpp, or on the caller alone before it was given them.
#pragma once

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

typedef void (*Task)(void* context, int64_t index);
typedef void (*Runner)(int64_t count, Task task, void* context);

static void run_alone(int64_t count, Task task, void* context) {
    for (int64_t i = 0; i < count; i++) task(context, i);
}

static Runner runner = run_alone;

// Every kernel library is lent the one crew of the process.
EXPORT void use_runner(Runner crew) { runner = crew; }

template <class F>
static inline void parallel(int64_t count, F&& f) {
    if (count == 1) return f(int64_t(0));
    runner(count, [](void* context, int64_t index) { (*(F*)context)(index); }, (void*)&f);
}

// The same in at most `parts` runs of consecutive indices.
template <class F>
static inline void parallel_runs(int64_t count, int64_t parts, F&& f) {
    if (parts > count) parts = count;
    if (parts < 1) return;
    parallel(parts, [&](int64_t part) {
        for (int64_t i = count * part / parts; i < count * (part + 1) / parts; i++) f(i);
    });
}
