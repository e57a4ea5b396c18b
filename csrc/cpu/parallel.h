// Runs body(0) .. body(count - 1) on a few threads, in no particular order.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace afn {

// Runs work(data) on up to `threads` threads, this one among them, of the OpenMP pool that is loaded: PyTorch's, whose
// threads wait for more work by spinning, so that others get no core meanwhile. False, with nothing run, where there is
// none, and in a process that was forked, which has lost its threads.
bool run_in_pool(int threads, void (*work)(void*), void* data);

enum class Threads {
    own,     // started for the call and joined before it returns, for callers that may be threads of many
    pooled,  // those of run_in_pool where they are there, for what is called between PyTorch's own operations
};

// Each thread makes its own body first.
template <class Make>
void parallel_with(int64_t count, int threads, const Make& make, Threads kind = Threads::own) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
        auto&& body = make();
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
    };
    if (kind == Threads::pooled && threads > 1 && count > 1 &&
        run_in_pool(threads, [](void* data) { (*static_cast<decltype(work)*>(data))(); }, &work))
        return;
    std::vector<std::thread> helpers;
    try {
        for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i) helpers.emplace_back(work);
    } catch (const std::system_error&) {
        // The machine has no thread left to give; those already running and this one do the work.
    }
    work();
    for (std::thread& helper : helpers) helper.join();
}

template <class Body>
void parallel_for(int64_t count, int threads, const Body& body, Threads kind = Threads::own) {
    parallel_with(count, threads, [&]() -> const Body& { return body; }, kind);
}

}  // namespace afn
