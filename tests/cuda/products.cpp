// Products of warpgroups. All 128 threads come together to issue one; it is computed when the first of them waits for
// its group, and each thread finds the sums in its registers when it has waited itself.
#include <climits>
#include <cmath>
#include <numeric>
#include <set>
#include <tuple>

#include "fibers.h"

namespace afn {
namespace host {
namespace {

constexpr int kGroup = 128;
constexpr int kKept = 13;  // bits behind the first of an e4m3 product's sums
int short_sums = 0;

Warpgroup& group() { return machine->async.groups[machine->current->index / kGroup]; }

int bytes_of(Number number) { return number == Number::e4m3 ? 1 : 2; }
int span(uint64_t descriptor) { return descriptor >> 62 ? 16 << (4 - (descriptor >> 62)) : 16; }

float value(Number number, const void* at) {
    uint16_t bits = 0;
    std::memcpy(&bits, at, bytes_of(number));
    if (number == Number::bf16) return from_bf16(bits);
    if (number == Number::f16) return from_f16(bits);
    return from_f16(static_cast<uint16_t>(f16_of_e4m3(bits)));
}

uint32_t* use_of(const void* registers, uint32_t place) {
    uintptr_t at = reinterpret_cast<uintptr_t>(registers) - reinterpret_cast<uintptr_t>(machine->stacks);
    if (at >= kStack * kMostThreads) fail_at(place, "keeps registers of a product in memory that others can reach");
    return machine->async.uses + at / 4;
}

Operation* operation(Warpgroup& all, uint32_t number) {
    for (Operation& one : all.operations)
        if (one.number == number) return &one;
    return nullptr;
}

// That a product may use these registers of the current thread; the product that adds to them already, or zero.
uint32_t check_registers(const Product& own, uint32_t place) {
    const Thread& self = *machine->current;
    if (!self.fence) fail_at(place, "issues a product before its first fence of registers");
    const char* late = "issues a product whose registers it has used since its last fence of them";
    uint32_t before = use_of(own.d, place)[0];
    for (int i = 0; i < own.n / 2; ++i) {
        uint32_t use = use_of(own.d, place)[i];
        if (!(use & kBusy) && use >= self.fence) fail_at(place, late);
        if ((use | before) & kBusy && use != before)
            fail_at(place, "issues a product whose sums are some of another product's");
    }
    for (int i = 0; own.registers && i < 4; ++i) {
        uint32_t use = use_of(own.registers, place)[i];
        if (!(use & kBusy) && use >= self.fence) fail_at(place, late);
        if (use & kBusy && !(use & kRead)) fail_at(place, "issues a product of what another product writes");
    }
    if (!(before & kBusy)) return 0;
    if (before & kRead) fail_at(place, "issues a product that writes what another product reads");
    const Operation* other = operation(group(), before & ~kBusy);
    if (!other || other->what.n != own.n || other->what.number != own.number)
        fail_at(place, "issues a product into the sums of a product of another shape");
    return before & ~kBusy;
}

void check_descriptor(uint64_t descriptor, Major major, Number number, uint32_t place) {
    if (descriptor >> 49 & 7) fail_at(place, "gives a descriptor a base offset, which is not followed here");
    if (descriptor & (3ull << 14 | 3ull << 30 | 7ull << 46 | 0x3ffull << 52))
        fail_at(place, "gives a descriptor bits that mean nothing");
    int wide = span(descriptor), start = (descriptor & 0x3fff) << 4;
    bool swizzle = descriptor >> 62;
    if (swizzle && major == Major::k && (start % (8 * wide) >= wide || start % wide + 32 > wide))
        fail_at(place, "gives a descriptor a start outside of the first row of a swizzle's eight");
    if (swizzle && major == Major::mn && start % (8 * wide))
        fail_at(place, "gives a descriptor a start that is not where a swizzle begins");
    if (number == Number::e4m3 && major == Major::mn) fail_at(place, "has e4m3 in another order than along K");
}

// The granules of an operand: read by the product, behind what wrote them, and by a proxy fence where threads did.
void read_operand(uint64_t descriptor, Major major, Number number, int rows, const Stamp& now,
                  std::set<std::tuple<uint16_t, uint32_t, uint32_t, uint32_t>>& behind) {
    Machine& m = *machine;
    check_descriptor(descriptor, major, number, now.place);
    int bytes = bytes_of(number);
    for (int row = 0; row < rows; ++row)
        for (int k = 0; k < 32 / bytes; k += 2 / bytes) {
            uint32_t byte = operand_byte(descriptor, major, bytes, row, k);
            if (byte + 2 > m.launch.shared)
                fail_at(now.place, "is beyond the " + std::to_string(m.launch.shared) +
                                       " bytes of shared memory, at byte " + std::to_string(byte + 1));
#ifndef AFN_UNCHECKED
            uintptr_t at = reinterpret_cast<uintptr_t>(m.shared) + byte;
            Cell& cell = cell_at(at);
            const Stamp& last = cell.written;
            check(cell, at, true, false, How::bulk, now);
            if (!behind.emplace(last.thread, last.releases, last.barriers, last.warp_barriers).second) continue;
            int first = m.current->index / kGroup * kGroup;
            for (int i = first; i < first + kGroup; ++i) {
                if (!ordered(last, m.threads[i])) conflict(now.place, at, false, last, true, nullptr);
                if (!seen_by_async(last, m.threads[i]))
                    conflict(now.place, at, false, last, true, "no proxy fence between them");
            }
#endif
        }
}

void issue(Warpgroup& all, uint32_t place) {
    Machine& m = *machine;
    const Product& one = all.own[0];
    for (int i = 1; i < kGroup; ++i) {
        const Product& other = all.own[i];
        if (std::tie(one.number, one.n, one.a_major, one.b_major, one.a, one.b, one.more) !=
                std::tie(other.number, other.n, other.a_major, other.b_major, other.a, other.b, other.more) ||
            !one.registers != !other.registers || all.before[0] != all.before[i])
            fail_at(place, "issues another product than others of its warpgroup");
    }
    Operation& made = all.operations.emplace_back(Operation{++all.products, place, one});
    Stamp now = stamp(m.blocks, place);
    now.thread = static_cast<uint16_t>(kProducts + m.current->index / kGroup);
    now.warp = 0;
    now.releases = made.number;
    std::set<std::tuple<uint16_t, uint32_t, uint32_t, uint32_t>> behind;
    if (!one.registers) read_operand(one.a, one.a_major, one.number, 64, now, behind);
    read_operand(one.b, one.b_major, one.number, one.n, now, behind);
    for (const Product& own : all.own)
        if (own.registers) made.registers.insert(made.registers.end(), own.registers, own.registers + 4);
    if (all.before[0]) {
        made.sum = operation(all, all.before[0])->sum;
    } else {
        made.sum = std::make_shared<Accumulator>();
        for (const Product& own : all.own) made.sum->values.insert(made.sum->values.end(), own.d, own.d + one.n / 2);
    }
    made.sum->last = made.number;
}

// A sum before, and count products: each cut off where the largest has its last bit, and so is what they come to.
float short_sum(float before, const float* products, int count) {
    int most = before != 0 ? std::ilogb(before) : INT_MIN;
    bool finite = std::isfinite(before);
    for (int i = 0; i < count; ++i) {
        finite = finite && std::isfinite(products[i]);
        if (products[i] != 0) most = std::max(most, std::ilogb(products[i]));
    }
    if (!finite) return std::accumulate(products, products + count, before);
    if (most == INT_MIN) return 0;
    auto cut = [&](double x) { return static_cast<int64_t>(std::ldexp(x, kKept - most)); };
    int64_t sum = cut(before);
    for (int i = 0; i < count; ++i) sum += cut(products[i]);
    for (int64_t unit = 2; std::abs(sum) >= unit << kKept; unit *= 2) sum -= sum % unit;
    return static_cast<float>(std::ldexp(static_cast<double>(sum), most - kKept));
}

void compute(Operation& one) {
    const Product& what = one.what;
    int bytes = bytes_of(what.number), depth = 32 / bytes, n = what.n;
    std::vector<float> a(64 * depth), b(depth * n), d(64 * n);
    for (int k = 0; k < depth; ++k) {
        for (int row = 0; row < 64 && !what.registers; ++row)
            a[row * depth + k] =
                value(what.number, machine->shared + operand_byte(what.a, what.a_major, bytes, row, k));
        for (int row = 0; row < n; ++row)
            b[k * n + row] = value(what.number, machine->shared + operand_byte(what.b, what.b_major, bytes, row, k));
    }
    for (int thread = 0; what.registers && thread < kGroup; ++thread)
        for (int i = 0; i < 16 / bytes; ++i) {
            int row, k;
            place_of_a(thread / 32, thread % 32, i, bytes, row, k);
            const auto* own = reinterpret_cast<const unsigned char*>(&one.registers[4 * thread]);
            a[row * depth + k] = value(what.number, own + bytes * i);
        }
    bool cut = short_sums && what.number == Number::e4m3;
    for (int row = 0; row < 64 && !cut; ++row)
        for (int k = 0; k < depth; ++k)
            for (int column = 0; column < n; ++column) d[row * n + column] += a[row * depth + k] * b[k * n + column];
    for (int thread = 0; thread < kGroup; ++thread)
        for (int i = 0; i < n / 2; ++i) {
            int row, column;
            place_of_d(thread / 32, thread % 32, i, row, column);
            float& sum = one.sum->values[thread * n / 2 + i];
            if (!what.more) sum = 0;
            float products[32];
            for (int k = 0; cut && k < depth; ++k) products[k] = a[row * depth + k] * b[k * n + column];
            sum = cut ? short_sum(sum, products, depth) : sum + d[row * n + column];
        }
    one.done = true;
}

void release(uint32_t* uses, int count, uint32_t by) {
    for (int i = 0; i < count; ++i)
        if (uses[i] == by) uses[i] = 0;
}

void retire(uint32_t number, uint32_t place) {
    Warpgroup& all = group();
    Thread& self = *machine->current;
    Operation& one = *operation(all, number);
    if (!one.done) compute(one);
    const Product& what = one.what;
    const Product& own = self.issued[number];
    int i = self.index % kGroup;
    if (one.sum->last == number) {
        std::memcpy(own.d, &one.sum->values[i * what.n / 2], what.n / 2 * sizeof(float));
        release(use_of(own.d, place), what.n / 2, kBusy | number);
    }
    if (own.registers) release(use_of(own.registers, place), 4, kBusy | kRead | number);
    self.issued.erase(number);
    auto& threads = self.own.blocks[machine->block].threads;
    threads[static_cast<uint16_t>(kProducts + self.index / kGroup)] = number;
    ++one.retired;
    while (!all.operations.empty() && all.operations.front().retired == kGroup) all.operations.pop_front();
}

}  // namespace

uint32_t operand_byte(uint64_t descriptor, Major major, int bytes, int row, int k) {
    uint32_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4;
    uint32_t stride = (descriptor >> 32 & 0x3fff) << 4, wide = span(descriptor);
    uint32_t along = k * bytes, across = row * bytes;
    if (major == Major::k) {
        start += row % 8 * wide + row / 8 * stride;
        start += descriptor >> 62 ? along : along / 16 * leading + along % 16;
    } else {
        start += k % 8 * wide + across % wide;
        start += across / wide * (descriptor >> 62 ? leading : stride) + k / 8 * (descriptor >> 62 ? stride : leading);
    }
    return swizzled(start, static_cast<Swizzle>(descriptor >> 62));
}

void place_of_d(int warp, int lane, int i, int& row, int& column) {
    row = 16 * warp + lane / 4 + i / 2 % 2 * 8;
    column = i / 4 * 8 + lane % 4 * 2 + i % 2;
}

void place_of_a(int warp, int lane, int i, int bytes, int& row, int& k) {
    int each = 4 / bytes, word = i / each;
    row = 16 * warp + lane / 4 + word % 2 * 8;
    k = lane % 4 * each + i % each + word / 2 * 4 * each;
}

void use_registers(uintptr_t on_stack, size_t bytes, bool write, uint32_t place) {
    Async& a = machine->async;
    for (uintptr_t word = on_stack / 4; word * 4 < on_stack + bytes; ++word) {
        uint32_t use = a.uses[word];
        a.uses[word] = a.fences;
        if (!(use & kBusy)) continue;
        const Operation* one = operation(group(), use & ~(kBusy | kRead));
        fail_at(place, std::string(write ? "writes" : "reads") + " a register of the product at " +
                           (one ? line_of(one->place) : "a line that is not known") + " before its wait");
    }
}

void product(const Product& own) {
    uint32_t place = PLACE;
    Machine& m = *machine;
    if (m.current->index / kGroup >= static_cast<int>(m.async.groups.size()))
        fail_at(place, "issues a product outside of a warpgroup");
    Warpgroup& all = group();
    Thread& self = *m.current;
    all.own[self.index % kGroup] = own;
    all.before[self.index % kGroup] = check_registers(own, place);
    meet(all.meeting, kGroup, "others of their warpgroup", [&] { issue(all, place); });
    uint32_t number = all.products;
    self.products.push_back(number);
    self.issued[number] = own;
    for (int i = 0; i < own.n / 2; ++i) use_of(own.d, place)[i] = kBusy | number;
    for (int i = 0; own.registers && i < 4; ++i) use_of(own.registers, place)[i] = kBusy | kRead | number;
    std::memset(own.d, 0xff, own.n / 2 * sizeof(float));
}

void wait_products(unsigned n) {
    uint32_t place = PLACE;
    Thread& self = *machine->current;
    for (; self.product_groups.size() > n; self.product_groups.pop_front())
        for (uint32_t number : self.product_groups.front()) retire(number, place);
}

void set_registers(int n, bool more) {
    uint32_t place = PLACE;
    Machine& m = *machine;
    if (m.current->index / kGroup >= static_cast<int>(m.async.groups.size()))
        fail_at(place, "asks for registers outside of a warpgroup");
    Warpgroup& all = group();
    all.wish[m.current->index % kGroup] = n;
    meet(all.meeting, kGroup, "others of their warpgroup", [&] {
        for (int wish : all.wish)
            if (wish != n) fail_at(place, "asks for another number of registers than others of its warpgroup");
        if (more ? n < all.registers : n > all.registers)
            fail_at(place, "asks for " + std::to_string(n) + " registers where it has " +
                               std::to_string(all.registers) + (more ? ", to have more" : ", to have less"));
        if (more) return;
        m.async.pool += all.registers - n;
        all.registers = n;
        wake(m.async.at_pool);
    });
    while (all.registers != n) {
        if (m.async.pool >= n - all.registers) {
            m.async.pool -= n - all.registers;
            all.registers = n;
        } else {
            wait(m.async.at_pool, "registers of other warpgroups");
        }
    }
}

void begin_async_launch() {
    Async& a = machine->async;
    constexpr size_t size = kStack * kMostThreads;
    if (!a.uses) {
        void* found = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (found == MAP_FAILED) std::abort();
        a.uses = static_cast<uint32_t*>(found);
    } else if (a.fences) {
        madvise(a.uses, size, MADV_DONTNEED);
    }
    a.fences = 0;
}

void begin_async_block() {
    Machine& m = *machine;
    Async& a = m.async;
    a.barriers.clear();
    a.coming.clear();
    for (NamedBarrier& b : a.named) b = {};
    a.groups.clear();
    a.groups.resize(m.launch.threads / kGroup);
    a.at_pool.clear();
    a.pool = 0;
    int each = 65536 / (m.launch.threads * std::max(m.launch.blocks, 1)) / 8 * 8;
    for (Warpgroup& all : a.groups) all.registers = std::min(each, 256);
    for (Thread& thread : m.threads) {
        thread.fence = 0;
        thread.products.clear();
        thread.product_groups.clear();
        thread.issued.clear();
    }
}

}  // namespace host

using namespace host;

void wgmma_fence() { machine->current->fence = ++machine->async.fences; }

void wgmma_commit() {
    Thread& self = *machine->current;
    self.product_groups.push_back(std::move(self.products));
    self.products.clear();
}

}  // namespace afn

extern "C" {
void afn_short_sums(int on) { afn::host::short_sums = on; }
uint32_t afn_operand_byte(uint64_t descriptor, int mn_major, int bytes, int row, int k) {
    return afn::host::operand_byte(descriptor, mn_major ? afn::Major::mn : afn::Major::k, bytes, row, k);
}
// Row + 64 times the column of a register, of d or, where bytes are given, of a.
int afn_place(int thread, int i, int bytes) {
    int row, column;
    if (bytes)
        afn::host::place_of_a(thread / 32, thread % 32, i, bytes, row, column);
    else
        afn::host::place_of_d(thread / 32, thread % 32, i, row, column);
    return row + 64 * column;
}
}
