#include "parallel.h"

#ifdef __linux__
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace afn {

#ifdef __linux__

namespace {

// What GNU's and LLVM's runtimes export, and what compilers call.
using Parallel = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

std::atomic<bool> forked{false};
const bool watched = !pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

bool run_in_pool(int threads, void (*work)(void*), void* data) {
    static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    if (!parallel || !watched || forked) return false;
    parallel(work, data, static_cast<unsigned>(threads), 0);
    return true;
}

#else

bool run_in_pool(int, void (*)(void*), void*) { return false; }

#endif

}  // namespace afn
