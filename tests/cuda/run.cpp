// The machine behind host.h: fibers, barriers, copies, and what the compiler's hooks say of every access. One launch
// runs on one thread of the system, block after block.
#include "fibers.h"

namespace afn {
namespace host {
namespace {

thread_local std::unique_ptr<Machine> owner;

void hook(const void* p, size_t bytes, bool write, bool aligned, uint32_t place) {
    Machine* m = machine;
    if (!m || !m->current) return;
    uintptr_t at = reinterpret_cast<uintptr_t>(p);
    m->place = place;
    uintptr_t on_stack = at - reinterpret_cast<uintptr_t>(m->stacks);
    if (on_stack < kStack * kMostThreads) {
        if (m->async.fences) use_registers(on_stack, bytes, write, place);
        return;
    }
    if (at - reinterpret_cast<uintptr_t>(m->launch.parameters) < m->launch.size) return;
    if (aligned && at % bytes)
        fail_at(place, "uses " + std::to_string(bytes) + " bytes of " + memory(at) + " that are not aligned");
    access(p, bytes, write, How::plain, place);
}

void no_such_memory(int, siginfo_t* about, void*) {
    if (!machine || !machine->current) {  // not a kernel's: once more, and to its end
        signal(SIGSEGV, SIG_DFL);
        return;
    }
    fail_at(machine->place, "uses memory that is not there, at " + memory(reinterpret_cast<uintptr_t>(about->si_addr)));
}

// While a launch runs, on whichever thread, a segmentation fault may be a kernel's.
struct Faults {
    static inline std::mutex lock;
    static inline int launches;
    static inline struct sigaction before;
    Faults() {
        std::lock_guard held(lock);
        struct sigaction now = {};
        now.sa_sigaction = no_such_memory;
        now.sa_flags = SA_SIGINFO | SA_NODEFER;
        if (!launches++) sigaction(SIGSEGV, &now, &before);
    }
    ~Faults() {
        std::lock_guard held(lock);
        if (!--launches) sigaction(SIGSEGV, &before, nullptr);
    }
};

// The cells of a copy's destination: under way, or there.
void mark(const Copy& copy, Stamp now) {
    uintptr_t at = reinterpret_cast<uintptr_t>(copy.to);
    for (uintptr_t byte = 0; byte < copy.room; byte += kGrain) cell_at(at + byte).written = now;
}

void begin_copy(const Copy& copy, How how, uint32_t place, Stamp now) {
    if (copy.bytes) access(copy.from, copy.bytes, false, how, place);
    access(copy.to, copy.room, true, how, place);
    now.under_way = true;
    mark(copy, now);
    std::memset(copy.to, 0xff, copy.room);
}

void end_copy(const Copy& copy, Stamp now) {
    std::memcpy(copy.to, copy.from, copy.bytes);
    std::memset(copy.to + copy.bytes, 0, copy.room - copy.bytes);
    mark(copy, now);
}

[[SWITCHES]] void rest() {
    Machine& m = *machine;
    Thread* self = m.current;
    if (!self->open.empty() || !self->groups.empty()) fail("a copy was never waited for");
    if (!self->products.empty() || !self->product_groups.empty()) fail("a product was never waited for");
    if (!stores_read(*self)) fail("a store was never waited for until its bytes were read");
    void** to = m.jump;
    if (++m.done < m.launch.threads) {
        m.current = next_ready();
        to = m.current->jump;
    } else {
        m.current = nullptr;
    }
    if (!__builtin_setjmp(self->jump)) jump(to);
}

[[SWITCHES]] void park(Thread* self) {
    if (!__builtin_setjmp(self->jump)) setcontext(&machine->home);
}

void fiber() {
    park(machine->current);
    for (;;) {
        machine->launch.kernel(machine->launch.parameters);
        rest();
    }
}

[[SWITCHES]] void run_block() {
    Machine& m = *machine;
    if (__builtin_setjmp(m.jump)) return;
    m.current = next_ready();
    jump(m.current->jump);
}

void begin_launch(const Launch& launch) {
    Machine& m = *machine;
    m.launch = launch;
    m.random = schedule;
    m.message.clear();
    if (m.broken || m.threads.size() != static_cast<size_t>(launch.threads)) {
        m.threads.clear();
        m.broken = false;
        for (int i = 0; i < launch.threads; ++i) {
            Thread& thread = m.threads.emplace_back();
            thread.index = i;
            getcontext(&thread.context);
            thread.context.uc_stack = {.ss_sp = m.stacks + i * kStack, .ss_flags = 0, .ss_size = kStack};
            thread.context.uc_link = nullptr;
            makecontext(&thread.context, fiber, 0);
            m.current = &thread;
            swapcontext(&m.home, &thread.context);
        }
        m.current = nullptr;
    }
    m.global.begin();
    begin_async_launch();
    m.released.clear();
    ++m.launches;
}

void begin_block(int number) {
    Machine& m = *machine;
    m.block = number;
    m.x = number % m.launch.x;
    m.y = number / m.launch.x;
    m.warps.clear();
    m.warps.resize(m.launch.threads / 32);
    m.bulks.clear();
    m.ready.clear();
    m.at_barrier.clear();
    m.seen.blocks.clear();
    m.proxied.blocks.clear();
    m.done = 0;
    m.barriers = 0;
    ++m.blocks;
    for (Thread& thread : m.threads) {
        thread.turn = 0;
        thread.releases = 0;
        thread.stores.clear();
        thread.store_groups = 0;
        for (Seen* seen : {&thread.own, &thread.taken, &thread.fenced, &thread.proxied}) seen->blocks.clear();
        m.ready.push_back(&thread);
    }
    begin_async_block();
    std::memset(m.shared, 0xff, m.launch.shared);
}

Bulk& bulk_at(uint64_t* barrier, uint32_t place) {
    for (Bulk& bulk : machine->bulks)
        if (bulk.barrier == barrier) {
            const Stamp& begun = cell_at(reinterpret_cast<uintptr_t>(barrier)).written;
            if (!ordered(begun)) conflict(place, reinterpret_cast<uintptr_t>(barrier), false, begun, true, nullptr);
            return bulk;
        }
    fail_at(place, "uses a bulk barrier that was never started");
}

// A copy's bytes are ordered before those that have waited for its phase.
Stamp of_copy(const Bulk& bulk, uint32_t place) {
    Stamp now = stamp(machine->blocks, place);
    size_t number = 0;
    while (&machine->bulks[number] != &bulk) ++number;
    now.thread = static_cast<uint16_t>(kCopies + number);
    now.warp = 0;
    now.releases = bulk.phase;
    return now;
}

int left_out = 0;

}  // namespace

bool omitted(int place) { return place == left_out; }

const char* run(const Launch& launch) {
    if (!machine) {
        owner = std::make_unique<Machine>();
        machine = owner.get();
    }
    Machine& m = *machine;
    if (launch.threads % 32 || launch.threads > static_cast<int>(kMostThreads) || launch.shared > kMostLaunch)
        return "no GPU launches a block of that many threads or bytes of shared memory";
    begin_launch(launch);
#ifndef AFN_UNCHECKED
    Faults faults;
#endif
    for (int i = 0; i < launch.x * launch.y && m.message.empty(); ++i) {
        begin_block(launch.backwards ? launch.x * launch.y - 1 - i : i);
        run_block();
        for (const Bulk& bulk : m.bulks)
            if (m.message.empty() && bulk.under_way) m.message = "bulk copies were never waited for";
        if (m.message.empty()) m.message = end_async_block();
        if (m.message.empty())
            for (Thread& thread : m.threads) end_stores(thread);
    }
    return m.message.empty() ? nullptr : m.message.c_str();
}

uint32_t shuffle(uint32_t x, int lane) {
    machine->warp().words[machine->current->turn][machine->lane()] = x;
    return machine->warp().words[exchange()][lane & 31];
}

void load(void* to, const void* from, int bytes) {
    uint32_t place = PLACE;
    if (reinterpret_cast<uintptr_t>(from) % bytes)
        fail_at(place, "loads " + std::to_string(bytes) + " bytes that are not aligned");
    access(from, bytes, false, How::past_l1, place);
    std::memcpy(to, from, bytes);
}

int atomic(int* p, int x, int (*now)(int, int), bool acquire, bool release) {
    Machine& m = *machine;
    Thread& self = *m.current;
    access(p, sizeof *p, true, How::atomic, PLACE);
    Seen& here = m.released[reinterpret_cast<uintptr_t>(p)];
    (acquire ? self.own : self.taken).merge(here);
    here.merge(release ? snapshot() : self.fenced);
    int before = *p;
    *p = now(before, x);
    return before;
}

void wait_for(const int* p, int x, bool acquire) {
    Machine& m = *machine;
    uint32_t place = PLACE;
    access(p, sizeof *p, true, How::atomic, place);
    for (int round = 0; *p < x; ++round) {
        if (round == 10000)
            fail_at(place, "waits for " + std::to_string(x) + " in " + memory(reinterpret_cast<uintptr_t>(p)) +
                               ", where " + std::to_string(*p) + " stays");
        m.ready.push_back(m.current);
        switch_to(next_ready());
    }
    Seen& here = m.released[reinterpret_cast<uintptr_t>(p)];
    (acquire ? m.current->own : m.current->taken).merge(here);
}

void copy_wait(unsigned n) {
    Thread& self = *machine->current;
    uint32_t place = PLACE;
    for (; self.groups.size() > n; self.groups.pop_front())
        for (const Copy& copy : self.groups.front()) end_copy(copy, stamp(machine->blocks, place));
}

void load_rows(uint32_t (&x)[4], const void* row, bool transposed) {
    uint32_t place = PLACE;
    int lane = machine->lane();
    if (reinterpret_cast<uintptr_t>(row) % 16) fail_at(place, "loads a row of a matrix that is not aligned");
    Warp& warp = machine->warp();
    warp.rows[machine->current->turn][lane] = static_cast<const unsigned char*>(row);
    int turn = exchange();
    for (int matrix = 0; matrix < 4; ++matrix) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
            int r = transposed ? lane % 4 * 2 + i : lane / 4, c = transposed ? lane / 4 : lane % 4 * 2 + i;
            const unsigned char* from = warp.rows[turn][8 * matrix + r] + 2 * c;
            access(from, 2, false, How::plain, place);
            std::memcpy(&pair[i], from, 2);
        }
        std::memcpy(&x[matrix], pair, 4);
    }
}

void mma(float (&d)[4], const float (&own)[12]) {
    Warp& warp = machine->warp();
    int lane = machine->lane(), group = lane / 4, pair = lane % 4;
    std::memcpy(warp.numbers[machine->current->turn][lane], own, sizeof own);
    const auto& numbers = warp.numbers[exchange()];
    for (int i = 0; i < 4; ++i) {
        int row = group + 8 * (i / 2), column = 2 * pair + i % 2;
        for (int k = 0; k < 16; ++k) {
            int inner = k % 8 / 2, word = k / 8;
            d[i] += numbers[row % 8 * 4 + inner][2 * (row / 8 + 2 * word) + k % 2] *
                    numbers[column * 4 + inner][2 * (4 + word) + k % 2];
        }
    }
}

}  // namespace host

using namespace host;

unsigned char* shared_memory() { return machine->shared; }
int thread_index() { return machine->current->index; }
int block_index() { return machine->x; }
int block_index_y() { return machine->y; }
int grid_size() { return machine->launch.x; }

void sync_block() {
    Machine& m = *machine;
    meet(m.at_barrier, m.launch.threads, "the block's barrier", [&m] {
        ++m.barriers;
        for (Thread& thread : m.threads) take(m.seen, thread.own), take(m.proxied, thread.proxied);
        for (Warp& warp : m.warps) take(m.seen, warp.seen), take(m.proxied, warp.proxied);
    });
}

void sync_warp() {
    Machine& m = *machine;
    Warp& warp = m.warp();
    int first = m.current->index / 32 * 32;
    meet(warp.at_barrier, 32, "the warp's barrier", [&] {
        ++warp.barriers;
        for (int i = first; i < first + 32; ++i) {
            take(warp.seen, m.threads[i].own);
            take(warp.proxied, m.threads[i].proxied);
        }
    });
}

void fence() {
    Thread& self = *machine->current;
    take(self.own, self.taken);
    self.fenced = snapshot();
}

void copy_async(void* to, const void* from, int bytes) {
    uint32_t place = PLACE;
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16)
        fail_at(place, "copies 16 bytes that are not aligned");
    Copy copy{static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), static_cast<uint32_t>(bytes),
              16};
    begin_copy(copy, How::past_l1, place, stamp(machine->blocks, place));
    machine->current->open.push_back(copy);
}

void copy_commit() {
    Thread& self = *machine->current;
    self.groups.push_back(std::move(self.open));
    self.open.clear();
}

void bulk_start(uint64_t* barrier) {
    uint32_t place = PLACE;
    for (Bulk& bulk : machine->bulks)
        if (bulk.barrier == barrier) fail_at(place, "starts a bulk barrier a second time");
    access(barrier, 8, true, How::plain, place);
    machine->bulks.push_back({barrier});
}

void bulk_expect(uint64_t* barrier, uint32_t bytes) {
    uint32_t place = PLACE;
    Bulk& bulk = bulk_at(barrier, place);
    if (bulk.under_way) fail_at(place, "expects bytes of a bulk barrier before those expected last have come");
    bulk.under_way = true;
    bulk.expected = bytes;
    bulk.coming = 0;
    bulk.copies.clear();
    bulk.released = snapshot();
}

void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
    uint32_t place = PLACE;
    uintptr_t places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
    if ((places | bytes) % 16) fail_at(place, "copies in bulk what is no multiple of 16 bytes");
    if (async_bulk_copy(to, from, bytes, barrier, place)) return;
    Bulk& bulk = bulk_at(barrier, place);
    if (!bulk.under_way) fail_at(place, "copies in bulk what its barrier does not expect");
    bulk.coming += bytes;
    if (bulk.coming > bulk.expected)
        fail_at(place, "copies " + std::to_string(bulk.coming) + " bytes where the bulk barrier expects " +
                           std::to_string(bulk.expected));
    bulk.copies.push_back({static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, bytes});
    begin_copy(bulk.copies.back(), How::bulk, place, of_copy(bulk, place));
    if (bulk.coming == bulk.expected) wake(bulk.waiting);
}

void bulk_wait(uint64_t* barrier, uint32_t phase) {
    uint32_t place = PLACE;
    Bulk& bulk = bulk_at(barrier, place);
    Thread& self = *machine->current;
    if (!bulk.phase && phase) fail_at(place, "waits for the second phase of a bulk barrier before the first");
    auto open = [&] { return (bulk.phase & 1) == phase; };
    while (open() && !(bulk.under_way && bulk.coming == bulk.expected)) wait(bulk.waiting, "bytes of a bulk barrier");
    if (open()) {
        for (const Copy& copy : bulk.copies) end_copy(copy, of_copy(bulk, place));
        bulk.under_way = false;
        ++bulk.phase;
    }
    Stamp copy = of_copy(bulk, place);
    --copy.releases;
    if (bulk.under_way && ordered(copy)) return;
    if (bulk.under_way) fail_at(place, "waits for a bulk barrier after its next bytes were expected");
    self.own.merge(bulk.released);
    self.own.blocks[machine->block].threads[copy.thread] = copy.releases;
}

}  // namespace afn

extern "C" {
void afn_leave_out(int place) { afn::host::left_out = place; }
void afn_schedule(uint32_t seed) { afn::host::schedule = seed; }

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
#define HOOKS(bytes)                                                                               \
    void __tsan_read##bytes(void* p) { afn::host::hook(p, bytes, false, true, PLACE); }            \
    void __tsan_write##bytes(void* p) { afn::host::hook(p, bytes, true, true, PLACE); }            \
    void __tsan_unaligned_read##bytes(void* p) { afn::host::hook(p, bytes, false, false, PLACE); } \
    void __tsan_unaligned_write##bytes(void* p) { afn::host::hook(p, bytes, true, false, PLACE); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, uint64_t bytes) { afn::host::hook(p, bytes, false, false, PLACE); }
void __tsan_write_range(void* p, uint64_t bytes) { afn::host::hook(p, bytes, true, false, PLACE); }
}
