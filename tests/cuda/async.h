// What a block has under way on Hopper: barriers, copies, products of warpgroups, registers. See barriers.cpp,
// stores.cpp, products.cpp.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <deque>

#include "afn/hopper.cuh"
#include "check.h"

namespace afn::host {

struct Thread;

// Bytes on their way to or from shared memory; a box of a tensor, or of one dimension.
struct Box {
    unsigned char *shared, *global;
    uint32_t bytes;
    uint32_t barrier, phase, place;
    int rank, element;
    uint32_t swizzle;
    int at[5];
    uint32_t sizes[5], box[5];
    uint64_t strides[4];
};

struct Store {
    Box box;
    bool add;
    uint32_t group;                      // its number among the thread's
    std::vector<unsigned char> bytes{};  // once they are read
};

struct Barrier {
    uint64_t* at;
    Stamp begun;
    uint32_t count, pending;
    bool fenced = false;
    int64_t coming = 0;                          // bytes expected and not yet come
    uint32_t phase = 0, waited = 0, filled = 0;  // phases that have ended, were waited for, had copies
    std::vector<Box> copies{};                   // come in this phase
    Seen arrived{}, arrived_proxied{}, released{}, released_proxied{};
    std::vector<Thread*> waiting{};
};

struct NamedBarrier {
    int threads = 0;
    std::vector<int> who{};  // have arrived
    Seen seen{}, proxied{};
    std::vector<Thread*> waiting{};
};

struct Accumulator {
    std::vector<float> values;  // by thread, then register
    uint32_t last = 0;          // product
};

struct Operation {
    uint32_t number, place;
    Product what;
    std::vector<uint32_t> registers{};  // of a, by thread
    std::shared_ptr<Accumulator> sum{};
    bool done = false;
    int retired = 0;  // by threads
};

struct Warpgroup {
    std::vector<Thread*> meeting{};
    Product own[128];
    uint32_t before[128];  // the product that has the registers of d, by thread
    int wish[128];         // registers
    std::deque<Operation> operations{};
    uint32_t products = 0;
    int registers = 0;
};

struct Async {
    std::deque<Barrier> barriers;
    std::deque<Box> coming;
    NamedBarrier named[16];
    std::vector<Warpgroup> groups;
    std::vector<Thread*> at_pool;
    int pool = 0;              // registers that no warpgroup has
    uint32_t fences = 0;       // of registers, by any thread; none in a launch without products
    uint32_t* uses = nullptr;  // by word of the stacks: the count of fences at its last use, or the product that has it
};

constexpr uint32_t kBusy = 1u << 31, kRead = 1u << 30;  // in uses, beside a product's number

void begin_async_launch();
void begin_async_block();
const char* end_async_block();
void use_registers(uintptr_t on_stack, size_t bytes, bool write, uint32_t place);
bool bytes_come();
bool stores_read(const Thread& self);
void end_stores(Thread& self);
bool seen_by_async(const Stamp& stamp, const Thread& self);
bool async_bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier, uint32_t place);

}  // namespace afn::host
