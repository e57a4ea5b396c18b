// How the threads of a block take turns, meet and hand on what they know.
#pragma once

#include "machine.h"

namespace afn::host {

[[SWITCHES]] inline void switch_to(Thread* next) {
    Thread* self = machine->current;
    machine->current = next;
    if (!__builtin_setjmp(self->jump)) jump(next->jump);
}

// Below n.
inline uint32_t chance(uint32_t n) {
    machine->random = machine->random * 1664525u + 1013904223u;
    return static_cast<uint32_t>(uint64_t{machine->random} * n >> 32);
}

inline Thread* next_ready() {
    Machine& m = *machine;
    if (schedule && !chance(64)) bytes_come();
    while (m.ready.empty() && bytes_come()) {
    }
    if (m.ready.empty()) {
        std::map<std::string, int> counts;
        for (Thread& thread : m.threads)
            if (thread.waits) ++counts[thread.waits];
        std::string text = "no thread of block " + std::to_string(m.block) + " can go on:";
        for (auto [waits, count] : counts) text += " " + std::to_string(count) + " wait for " + waits + ",";
        fail(text + " " + std::to_string(m.done) + " have returned");
    }
    if (schedule) std::swap(m.ready.front(), m.ready[chance(m.ready.size())]);
    Thread* next = m.ready.front();
    m.ready.pop_front();
    return next;
}

inline void wait(std::vector<Thread*>& place, const char* what) {
    Thread* self = machine->current;
    place.push_back(self);
    self->waits = what;
    switch_to(next_ready());
    self->waits = nullptr;
}

inline void wake(std::vector<Thread*>& place) {
    for (Thread* thread : place) machine->ready.push_back(thread);
    place.clear();
}

// All of count threads come together; the last one does what is to be done once. They go on in the order they came.
template <class Once>
void meet(std::vector<Thread*>& place, size_t count, const char* what, Once once) {
    if (place.size() + 1 < count) return wait(place, what);
    once();
    place.push_back(machine->current);
    wake(place);
    switch_to(next_ready());
}

inline void take(Seen& to, Seen& from) {
    if (from.blocks.empty()) return;
    to.merge(from);
    from.blocks.clear();
}

inline int exchange() {
    Warp& warp = machine->warp();
    int turn = machine->current->turn;
    machine->current->turn ^= 1;  // who is first writes the other room, so that nobody has to be waited for twice
    meet(warp.at_exchange, 32, "others of their warp", [] {});
    return turn;
}

// Everything that the current thread knows, itself included; what it does from now on is not in it.
inline Seen snapshot() {
    Machine& m = *machine;
    Thread& self = *m.current;
    Seen all = m.seen;
    all.merge(m.warp().seen);
    all.merge(self.own);
    Known& known = all.blocks[m.block];
    known.barriers = m.barriers;
    known.warps[static_cast<uint16_t>(self.index / 32)] = m.warp().barriers;
    known.threads[static_cast<uint16_t>(self.index)] = self.releases++;
    return all;
}

}  // namespace afn::host
