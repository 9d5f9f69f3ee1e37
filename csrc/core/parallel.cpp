#include "core/parallel.hpp"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

namespace curvkern {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto poll_interval = std::chrono::milliseconds(50);

std::atomic<bool> forked{false};

// The part of libgomp's binary interface that is used; libomp and libiomp5 offer it as well.
struct OpenMP {
    void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
    int (*max_threads)();
    int (*in_parallel)();
    int (*thread_num)();
};

// dlsym on torch's handle searches torch's dependencies: the runtime torch itself calls.
bool find(OpenMP& openmp) {
    void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    if (torch == nullptr) return false;
    const auto symbol = [torch](auto& function, const char* name) {
        function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(torch, name));
        return function != nullptr;
    };
    return symbol(openmp.parallel, "GOMP_parallel") &&
           symbol(openmp.max_threads, "omp_get_max_threads") &&
           symbol(openmp.in_parallel, "omp_in_parallel") &&
           symbol(openmp.thread_num, "omp_get_thread_num");
}

// Null as long as torch is not loaded; asked again each time, since it may still come.
const OpenMP* openmp() {
    static std::atomic<const OpenMP*> ready{nullptr};
    static std::mutex mutex;
    static OpenMP table;
    if (const OpenMP* found = ready.load(std::memory_order_acquire)) return found;
    const std::lock_guard<std::mutex> lock(mutex);
    if (ready.load() == nullptr && find(table)) ready.store(&table, std::memory_order_release);
    return ready.load();
}

// Chunks that follow each other, of which a thread takes the next; a cache line of its own.
struct alignas(64) Share {
    std::atomic<std::int64_t> next;
    std::int64_t end;
};

struct Job {
    std::int64_t n, chunk;
    InterruptCheck interrupted;
    detail::Chunk run;
    void* body;
    Share* share;
    std::int64_t shares;
    std::thread::id caller = std::this_thread::get_id();
    std::atomic<bool> stopped{false};
    std::atomic_flag failed{};
    std::exception_ptr failure{};  // the first; no exception may leave a parallel region
};

// Every thread of the team takes the chunks of its share one after the other, and then what is
// left of others' shares. The share of a thread is the same at the next call, so it finds in
// its L2 what it read and wrote at this one.
void work(void* data) {
    Job& job = *static_cast<Job*>(data);
    const bool polls = job.interrupted != nullptr && std::this_thread::get_id() == job.caller;
    Clock::time_point last_poll = Clock::now();
    const std::int64_t own = job.shares > 1 ? openmp()->thread_num() : 0;
    for (std::int64_t i = 0; i < job.shares; ++i) {
        Share& share = job.share[(own + i) % job.shares];
        while (!job.stopped.load(std::memory_order_relaxed)) {
            const std::int64_t index = share.next.fetch_add(1, std::memory_order_relaxed);
            if (index >= share.end) break;
            const std::int64_t begin = index * job.chunk;
            try {
                job.run(job.body, begin, std::min(begin + job.chunk, job.n));
            } catch (...) {
                if (!job.failed.test_and_set()) job.failure = std::current_exception();
                job.stopped.store(true);
            }
            if (polls && Clock::now() - last_poll >= poll_interval) {
                if (job.interrupted()) job.stopped.store(true);
                last_poll = Clock::now();
            }
        }
    }
}

bool finish(Job& job) {
    if (job.failure) std::rethrow_exception(job.failure);
    return !job.stopped.load();
}

}  // namespace

int thread_count() {
    if (in_forked_child()) return 1;
    const OpenMP* runtime = openmp();
    if (runtime == nullptr || runtime->in_parallel()) return 1;
    return std::max(1, runtime->max_threads());
}

const char* openmp_runtime() {
    const OpenMP* runtime = openmp();
    Dl_info info;
    if (runtime == nullptr || dladdr(reinterpret_cast<void*>(runtime->parallel), &info) == 0) {
        return "";
    }
    return info.dli_fname;
}

void install_fork_handler() {
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { forked.store(true); }); });
}

bool in_forked_child() {
    return forked.load(std::memory_order_relaxed);
}

bool detail::run_chunks(std::int64_t n, std::int64_t chunk, InterruptCheck interrupted,
                        Chunk run, void* body) {
    const std::int64_t chunks = n / chunk + (n % chunk != 0);
    const int available = chunks > 1 ? thread_count() : 1;
    const auto threads = std::min<std::int64_t>(available, chunks);
    if (threads > 1) {
        const auto share = std::make_unique<Share[]>(static_cast<std::size_t>(threads));
        for (std::int64_t i = 0, end = 0; i < threads; ++i) {
            share[i].next.store(end, std::memory_order_relaxed);
            share[i].end = end += (chunks - end) / (threads - i);
        }
        Job job{n, chunk, interrupted, run, body, share.get(), threads};
        openmp()->parallel(work, &job, static_cast<unsigned>(threads), 0);
        return finish(job);
    }
    Share all{0, chunks};
    Job job{n, chunk, interrupted, run, body, &all, 1};
    work(&job);
    return finish(job);
}

}  // namespace curvkern
