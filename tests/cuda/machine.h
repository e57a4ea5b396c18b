// The machine that a launch runs on, and what it says of an access that nothing orders.
#pragma once

#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <deque>
#include <mutex>

#include "async.h"
#include "check.h"
#include "host.h"

namespace afn::host {

constexpr size_t kStack = 1 << 18, kMostThreads = 1024, kMostShared = 1 << 18;
constexpr size_t kMostLaunch = 227 << 10;  // bytes of shared memory that a block may have

struct Copy {
    unsigned char* to;
    const unsigned char* from;
    uint32_t bytes, room;  // what is not copied becomes zero
};

struct Thread {
    int index = 0, turn = 0;
    void* jump[5];
    ucontext_t context;
    const char* waits = nullptr;
    uint32_t releases = 0;
    Seen own, taken, fenced;  // acquired; read by atomics before a fence; what the last fence releases
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
    Seen proxied;                    // of what it knows, what asynchronous copies and products see
    uint32_t fence = 0;              // its last of registers
    std::vector<uint32_t> products;  // numbers, not yet of a group
    std::deque<std::vector<uint32_t>> product_groups;
    std::map<uint32_t, Product> issued;  // by number
    std::deque<Store> stores;            // neither read nor written, or only read
    uint32_t store_groups = 0;           // committed
};

struct Warp {
    std::vector<Thread*> at_barrier, at_exchange;
    uint32_t barriers = 0;
    Seen seen, proxied;
    uint32_t words[2][32];
    float numbers[2][32][12];
    const unsigned char* rows[2][32];
};

struct Bulk {
    uint64_t* barrier;
    uint32_t phase = 0;  // how many have ended
    bool under_way = false;
    uint32_t expected = 0, coming = 0;  // bytes
    std::vector<Copy> copies{};
    Seen released{};  // by the thread that expects them
    std::vector<Thread*> waiting{};
};

struct Machine {
    Launch launch;
    std::deque<Thread> threads;
    std::deque<Warp> warps;
    std::deque<Bulk> bulks;
    std::deque<Thread*> ready;
    std::vector<Thread*> at_barrier;
    unsigned char *stacks, *shared;
    std::vector<Cell> cells = std::vector<Cell>(kMostShared / kGrain);
    Shadow global;
    std::unordered_map<uintptr_t, Seen> released;  // at places of atomics
    Seen seen, proxied;
    Async async;
    uint32_t block = 0, barriers = 0, launches = 0, blocks = 0;
    int x = 0, y = 0, done = 0;
    Thread* current = nullptr;
    uint32_t place = 0;  // of the last access that the compiler told of
    uint32_t random = 0;
    bool broken = false;
    std::string message;
    void* jump[5];
    ucontext_t home;

    Machine() {
        auto room = [](size_t bytes) {
            void* found =
                mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (found == MAP_FAILED) std::abort();
            return static_cast<unsigned char*>(found);
        };
        stacks = room(kStack * kMostThreads);
        shared = room(kMostShared);
    }
    ~Machine() {
        munmap(stacks, kStack * kMostThreads);
        munmap(shared, kMostShared);
        if (async.uses) munmap(async.uses, kStack * kMostThreads);
    }
    Warp& warp() { return warps[current->index / 32]; }
    int lane() const { return current->index % 32; }
};

inline thread_local Machine* machine;
inline int order_adds = 0;     // whether sums of asynchronous stores have to come in a known order
inline uint32_t schedule = 0;  // whose turn it is and when bytes come: at random from this seed, if there is one

// The address sanitiser would look for the end of a stack that is not the system's.
#define SWITCHES gnu::noinline, gnu::no_sanitize("address")

// GCC wants it in another function than __builtin_setjmp.
[[noreturn, SWITCHES]] inline void jump(void** to) { __builtin_longjmp(to, 1); }

[[noreturn]] inline void fail(const std::string& what) {
    machine->message = what;
    machine->broken = true;
    machine->current = nullptr;
    jump(machine->jump);
}

inline uintptr_t base() {
    static Dl_info found;
    if (!found.dli_fbase) dladdr(reinterpret_cast<void*>(&run), &found);
    return reinterpret_cast<uintptr_t>(found.dli_fbase);
}

// The line of the source, as the compiler noted it; of inlined functions the innermost that is a kernel's.
inline std::string line_of(uint32_t place) {
    Dl_info found;
    dladdr(reinterpret_cast<void*>(&run), &found);
    char command[600];
    std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%x 2>/dev/null", found.dli_fname, place - 1);
    std::string best;
    if (FILE* lines = popen(command, "r")) {
        char line[600];
        while (std::fgets(line, sizeof line, lines)) {
            std::string name(line, std::strcspn(line, " \n"));
            name = name.substr(name.rfind('/') + 1);
            bool kernel = name.find(".cu") != std::string::npos && name.rfind("device.cuh:", 0) != 0;
            if (best.empty() || kernel) best = name;
            if (kernel) break;
        }
        pclose(lines);
    }
    return best.empty() || best[0] == '?' ? "a line that is not known" : best;
}

// Where in the program the function that says PLACE was called.
#define PLACE static_cast<uint32_t>(reinterpret_cast<uintptr_t>(__builtin_return_address(0)) - afn::host::base())

inline std::string who(uint32_t block, int thread) {
    std::string name = thread == kMany         ? "several threads"
                       : thread >= kStoreReads ? "a store"
                       : thread >= kBarrier    ? "a barrier"
                       : thread >= kProducts   ? "a product"
                       : thread >= kCopies     ? "a bulk copy"
                                               : "thread " + std::to_string(thread);
    return block == kBlocks ? "several blocks" : name + " of block " + std::to_string(block);
}

inline std::string memory(uintptr_t at) {
    uintptr_t offset = at - reinterpret_cast<uintptr_t>(machine->shared);
    char text[40];
    std::snprintf(text, sizeof text, "global memory at 0x%zx", static_cast<size_t>(at));
    return offset < kMostShared ? "shared memory at byte " + std::to_string(offset) : text;
}

[[noreturn]] inline void fail_at(uint32_t place, const std::string& what) {
    fail(line_of(place) + ": " + who(machine->block, machine->current->index) + " " + what);
}

[[noreturn]] inline void conflict(uint32_t place, uintptr_t at, bool write, const Stamp& before, bool wrote,
                                  const char* why) {
    bool product = before.thread >= kProducts && before.thread < kBarrier;
    bool store = before.thread >= kStoreReads && before.thread != kMany;
    const char* reason = why                              ? why
                         : store                          ? "nobody has let know that the store has come so far"
                         : product                        ? "nobody has let know that the product has ended"
                         : before.block == machine->block ? "no barrier between them"
                                                          : "nothing has released and acquired it";
    fail_at(place, std::string(write ? "writes " : "reads ") + memory(at) + ", which " +
                       who(before.block, before.thread) + (wrote ? " wrote" : " read") + " at " +
                       line_of(before.place) + ": " + reason);
}

[[gnu::noinline]] inline bool known(const Stamp& stamp, const Thread& self) {
    Machine& m = *machine;
    return self.own.covers(stamp) || m.warps[self.index / 32].seen.covers(stamp) || m.seen.covers(stamp);
}

inline bool ordered(const Stamp& stamp, const Thread& self) {
    Machine& m = *machine;
    if (stamp.block == m.block) {
        if (stamp.thread == self.index) return true;
        if (counted(stamp) && stamp.barriers < m.barriers) return true;
        if (counted(stamp) && stamp.warp == self.index / 32 && stamp.warp_barriers < m.warps[self.index / 32].barriers)
            return true;
    }
    return known(stamp, self);
}
inline bool ordered(const Stamp& stamp) { return ordered(stamp, *machine->current); }

inline Stamp stamp(uint32_t life, uint32_t place) {
    const Thread& self = *machine->current;
    return {life,
            machine->block,
            static_cast<uint16_t>(self.index),
            static_cast<uint16_t>(self.index / 32),
            machine->barriers,
            machine->warp().barriers,
            self.releases,
            place,
            false};
}

enum class How { plain, past_l1, bulk, atomic, bulk_add };

// Who has read, or who has used atomics: the last one, or several at once. What barriers do not order stays alone.
inline void note(Stamp& before, const Stamp& now, bool behind) {
    if (behind || !counted(now) || !counted(before)) {
        before = now;
    } else if (before.block != now.block) {
        before.block = kBlocks;
    } else {
        before.thread = kMany;
        if (before.warp != now.warp) before.warp = kMany;
    }
}

// Of shared memory in a kernel with barriers, asynchronous stores or products: each of those that have read at once.
inline void note_each(Cell& cell, const Stamp& now, bool behind) {
    if (cell.others) {
        auto gone = [&](const Stamp& x) { return x.life != now.life || x.thread == now.thread || ordered(x); };
        std::erase_if(*cell.others, gone);
    }
    if (!behind && cell.read.thread != now.thread) {
        if (!cell.others) cell.others = std::make_unique<std::vector<Stamp>>();
        cell.others->push_back(cell.read);
    }
    cell.read = now;
}

inline void check_others(const Cell& cell, const Stamp& now, uintptr_t at) {
    for (const Stamp& read : *cell.others)
        if (read.life == now.life && !ordered(read)) conflict(now.place, at, true, read, false, nullptr);
}

inline void check(Cell& cell, uintptr_t at, bool shared, bool write, How how, const Stamp& now) {
    const Stamp& last = cell.written;
    auto behind = [&](const Stamp& stamp) { return stamp.life != now.life || ordered(stamp); };
    if (last.life == now.life) {
        if (last.under_way)
            conflict(now.place, at, write, last, true,
                     last.thread == kBarrier ? "a barrier is no memory" : "the copy is still under way");
        if (!ordered(last)) conflict(now.place, at, write, last, true, nullptr);
        if (!shared && (how == How::bulk || how == How::bulk_add) && counted(last))
            conflict(now.place, at, write, last, true, "bulk copies see it behind a proxy fence only");
        if (!shared && !write && how == How::plain && last.block != now.block)
            conflict(now.place, at, write, last, true, "L1 may hold what was there before");
    } else if (shared && !write && cell.atomic.life != now.life) {
        fail_at(now.place, "reads " + memory(at) + ", which nobody has written");
    }
    bool first = behind(cell.read), alone = behind(cell.atomic);
    if (write && !first) conflict(now.place, at, true, cell.read, false, nullptr);
    if (write && cell.others) check_others(cell, now, at);
    bool atomic = how == How::atomic || how == How::bulk_add;
    if (!atomic && !alone) conflict(now.place, at, write, cell.atomic, true, nullptr);
    if (how == How::bulk_add && order_adds && !alone)
        conflict(now.place, at, write, cell.atomic, true, "nothing orders the sums");
    if (atomic)
        note(cell.atomic, now, alone || cell.atomic.block != now.block);
    else if (write)
        cell.written = now;
    else if (shared && (!machine->async.barriers.empty() || !counted(now) || !counted(cell.read)))
        note_each(cell, now, first);
    else
        note(cell.read, now, first);
}

inline Cell& cell_at(uintptr_t at) {
    uintptr_t offset = at - reinterpret_cast<uintptr_t>(machine->shared);
    return offset < kMostShared ? machine->cells[offset / kGrain] : machine->global.at(at);
}

inline void access(const void* p, size_t bytes, bool write, How how, uint32_t place) {
#ifdef AFN_UNCHECKED  // by another sanitiser: nobody tells of plain accesses
    return;
#endif
    Machine& m = *machine;
    uintptr_t at = reinterpret_cast<uintptr_t>(p), offset = at - reinterpret_cast<uintptr_t>(m.shared);
    bool shared = offset < kMostShared;
    if (shared && offset + bytes > m.launch.shared)
        fail_at(place, "is beyond the " + std::to_string(m.launch.shared) + " bytes of shared memory, at byte " +
                           std::to_string(offset + bytes - 1));
    if (write && (at | bytes) % kGrain) fail_at(place, "writes a single byte, which the checker does not follow");
    Stamp now = stamp(shared ? m.blocks : m.launches, place);
    for (uintptr_t granule = at / kGrain; granule * kGrain < at + bytes; ++granule)
        check(cell_at(granule * kGrain), granule * kGrain, shared, write, how, now);
}

}  // namespace afn::host
