#include "afn/simd.h"

#include <cstdlib>
#include <stdexcept>

namespace afn {

namespace {

#if defined(__x86_64__) || defined(__i386__)
[[maybe_unused]] bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
[[maybe_unused]] bool runs_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
#endif
[[maybe_unused]] bool runs_neon() { return true; }
bool runs_portable() { return true; }
bool runs_portable16() { return true; }

struct Level {
    const char* name;
    bool runs;
};

const std::vector<Level>& all_levels() {
#define AFN_LEVEL_ROW(level) {#level, runs_##level()},
    static const std::vector<Level> found = {AFN_SIMD_LEVELS(AFN_LEVEL_ROW)};
    return found;
}

}  // namespace

std::vector<std::string> levels() {
    std::vector<std::string> names;
    for (const Level& level : all_levels()) {
        if (level.runs) names.push_back(level.name);
    }
    return names;
}

size_t find_level(const std::string& level) {
    const char* asked = std::getenv("AFN_SIMD");
    const std::string name = level.empty() && asked ? asked : level;
    const std::vector<Level>& all = all_levels();
    for (size_t i = 0; i < all.size(); ++i) {
        if (all[i].runs && (name.empty() || name == all[i].name)) return i;
    }
    std::string message = "SIMD level '" + name + "' does not run on this machine; it runs";
    for (const std::string& runs : levels()) message += " " + runs;
    throw std::invalid_argument(message);
}

std::string resolve_level(const std::string& level) { return all_levels()[find_level(level)].name; }

}  // namespace afn
