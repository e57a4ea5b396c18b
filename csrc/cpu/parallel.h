// Runs body(0) .. body(count - 1) on a few threads, in no particular order.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace afn {

// Threads are started for the call and joined before it returns: a resident pool would be lost in a forked data loader.
// Each makes its own body first.
template <class Make>
void parallel_with(int64_t count, int threads, const Make& make) {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        auto&& body = make();
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
    };
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
void parallel_for(int64_t count, int threads, const Body& body) {
    parallel_with(count, threads, [&]() -> const Body& { return body; });
}

}  // namespace afn
