// The threads that the kernels share.
//
// A model pass is hundreds of parallel regions of a few microseconds to a millisecond, on cores that an HTTP process and others
// want too. OpenMP's barriers make every region wait for every thread, so whenever another process holds a core, each region
// waits for a time slice. Here helpers *claim* pieces and the caller waits only for pieces that were claimed: if a helper is not
// running, the caller does the work alone. Idle helpers watch for work briefly, then sleep.
//
// One 64-bit word says everything about the current job, so that a claim is one atomic addition:
//     [ generation 16 | count 24 | next piece 24 ]
// A claim is valid when piece < count; the job's task cannot change while a valid claim is unfinished, because the caller waits.
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "parallel.h"

namespace {

constexpr int64_t MOST = 1 << 23;  // pieces of a job
constexpr auto WATCH = std::chrono::microseconds(100);  // longer than the gaps between the kernels of a pass

inline void pause_a_little() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

inline int64_t piece_of(uint64_t word) { return int64_t(word & 0xffffff); }
inline int64_t count_of(uint64_t word) { return int64_t(word >> 24 & 0xffffff); }

struct Crew {
    alignas(64) std::atomic<uint64_t> job{0};
    Task task = nullptr;
    void* context = nullptr;
    std::atomic<int> wanted{0};  // helpers that may claim
    alignas(64) std::atomic<int64_t> done{0};
    alignas(64) std::atomic<int> asleep{0};
    std::atomic_flag busy = ATOMIC_FLAG_INIT;
    std::mutex door;
    std::condition_variable bell;
    int helpers = 0;

    bool claim_and_work() {
        uint64_t word = job.load(std::memory_order_acquire);
        if (piece_of(word) >= count_of(word)) return false;
        word = job.fetch_add(1, std::memory_order_acq_rel);
        if (piece_of(word) >= count_of(word)) return false;
        task(context, piece_of(word));
        done.fetch_add(1, std::memory_order_release);
        return true;
    }

    bool work_left() const {
        const uint64_t word = job.load();
        return piece_of(word) < count_of(word);
    }

    void help(int number) {
        for (;;) {
            auto since = std::chrono::steady_clock::now();
            for (int look = 0;; look++) {
                if (number < wanted.load(std::memory_order_relaxed) && claim_and_work()) {
                    look = -1;
                } else if (look == 0) {
                    since = std::chrono::steady_clock::now();
                } else if (look % 8 == 0 && std::chrono::steady_clock::now() - since > WATCH) {
                    break;
                } else {
                    pause_a_little();
                }
            }
            std::unique_lock<std::mutex> lock(door);
            asleep.fetch_add(1);
            bell.wait(lock, [&] { return number < wanted.load() && work_left(); });
            asleep.fetch_sub(1);
        }
    }

    void run(int64_t count, Task work, void* with, int threads) {
        while (helpers < threads - 1) {
            std::thread(&Crew::help, this, helpers).detach();
            helpers++;
        }
        task = work;
        context = with;
        done.store(0, std::memory_order_relaxed);
        wanted.store(threads - 1, std::memory_order_relaxed);
        const uint64_t generation = (job.load(std::memory_order_relaxed) >> 48) + 1;
        job.store(generation << 48 | uint64_t(count) << 24);
        if (asleep.load() > 0) {
            { std::lock_guard<std::mutex> lock(door); }
            bell.notify_all();
        }
        while (claim_and_work()) {
        }
        for (int look = 0; done.load(std::memory_order_acquire) < count; look++) {
            if (look < 1000)
                pause_a_little();
            else
                sched_yield();  // the helper may be waiting for this very core
        }
    }
};

// Never destroyed: helpers outlive main. A forked child starts without helpers, so with a crew of its own.
Crew* crew = nullptr;
std::once_flag once;

std::atomic<int> width{0};  // what set_threads said, or 0

int threads() {
    if (const int said = width.load(std::memory_order_relaxed)) return said;
#if defined(_OPENMP)
    return omp_get_max_threads();  // what torch.set_num_threads set
#else
    return int(std::thread::hardware_concurrency());
#endif
}

}  // namespace

// How many threads the kernels use, whatever torch uses for its own operations.
EXPORT void set_threads(int64_t count) { width.store(int(count), std::memory_order_relaxed); }

EXPORT void run(int64_t count, Task task, void* context) {
    std::call_once(once, [] {
        crew = new Crew;
        pthread_atfork(nullptr, nullptr, [] { crew = new Crew; });
    });
    const int available = threads();
    // A second caller at the same time works alone rather than waiting.
    if (available < 2 || count > MOST || crew->busy.test_and_set(std::memory_order_acquire)) return run_alone(count, task, context);
    crew->run(count, task, context, available);
    crew->busy.clear(std::memory_order_release);
}
