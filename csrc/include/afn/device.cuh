// What the CUDA kernels are written with: one thin function for each instruction that C++ has no word for. A host
// compiler finds the same names in tests/cuda/host.h, where a block is a group of threads; see there.
#pragma once

#ifdef AFN_HOST
#include "host.h"
#else

#ifdef __CUDACC_RTC__
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#endif

#define AFN_DEVICE __device__ __forceinline__
// A kernel by its C name, which takes one struct of parameters by value.
#define AFN_KERNEL(name, Parameters, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Parameters p)

namespace afn {

// Dynamic shared memory of the block.
AFN_DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(1024) unsigned char memory[];
    return memory;
}

AFN_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

AFN_DEVICE int thread_index() { return threadIdx.x; }
AFN_DEVICE int block_index() { return blockIdx.x; }
AFN_DEVICE int block_index_y() { return blockIdx.y; }
AFN_DEVICE int grid_size() { return gridDim.x; }

AFN_DEVICE void sync_block() { __syncthreads(); }
AFN_DEVICE void sync_warp() { __syncwarp(); }
// Writes of this thread to global memory are seen by others before its later ones.
AFN_DEVICE void fence() { __threadfence(); }

AFN_DEVICE float shuffle(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
AFN_DEVICE uint32_t shuffle(uint32_t x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
AFN_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
AFN_DEVICE uint32_t shuffle_xor(uint32_t x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

AFN_DEVICE int atomic_max(int* p, int x) { return atomicMax(p, x); }
AFN_DEVICE int atomic_add(int* p, int x) { return atomicAdd(p, x); }
AFN_DEVICE int atomic_exchange(int* p, int x) { return atomicExch(p, x); }
// Releases what this thread has written or seen behind a barrier, and acquires what was released here before.
AFN_DEVICE int atomic_add_release_acquire(int* p, int x) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(__cvta_generic_to_global(p)), "r"(x)
                 : "memory");
    return before;
}

// Releases only; and waits until others have counted up to x there, which it acquires. More is no reason to wait: tiles
// of boundaries that overlap, which nobody reads on a GPU first, count the same rows twice.
AFN_DEVICE void atomic_add_release(int* p, int x) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(x) : "memory");
}
AFN_DEVICE void wait_for(const int* p, int x) {
    int now;
    do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(__cvta_generic_to_global(p)) : "memory");
    } while (now < x);
}

// Loads that skip L1: of what other blocks have written in this launch.
template <class T>
AFN_DEVICE T load_global(const T* p) {
    return __ldcg(p);
}
template <>
AFN_DEVICE uint16_t load_global<uint16_t>(const uint16_t* p) {
    return __ldcg(p);
}

// The same for what is read once, so that L1 keeps the rest. It orders nothing.
template <class T>
AFN_DEVICE T load_once(const T* p) {
    return __ldcg(p);
}

AFN_DEVICE int bits_of(float x) { return __float_as_int(x); }
AFN_DEVICE float float_of(int x) { return __int_as_float(x); }
AFN_DEVICE float exp2_fast(float x) {  // 2^x, two units in the last place; -inf gives 0
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
AFN_DEVICE float log2_fast(float x) {  // of normal positive x; absolute error 2^-22 in [0.5, 2]
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
AFN_DEVICE float fma_of(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// Byte i of the result is the byte of x that digit i of the selector names.
AFN_DEVICE uint32_t permute_bytes(uint32_t x, uint32_t selector) { return __byte_perm(x, 0, selector); }

// bfloat16 and float16 as their bits, so that no header of CUDA is needed.
AFN_DEVICE uint32_t pack_bf16(float low, float high) {
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
AFN_DEVICE uint32_t pack_f16(float low, float high) {
    uint32_t y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
AFN_DEVICE float from_bf16(uint16_t x) { return float_of(static_cast<int>(x) << 16); }
AFN_DEVICE float from_f16(uint16_t x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
// Two float8 e4m3 to two float16, exactly.
AFN_DEVICE uint32_t f16_of_e4m3(uint16_t x) {
    uint32_t y;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(y) : "h"(x));
#else
    // The same exponent bits are worth 2^8 less in float16.
    uint32_t both = (x & 0xffu) | (x & 0xff00u) << 8;
    uint32_t bits = (both & 0x00800080u) << 8 | (both & 0x007f007fu) << 7;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(bits), "r"(0x5c005c00u));
    if ((both & 0x7f) == 0x7f) y |= 0x7e00;
    if ((both >> 16 & 0x7f) == 0x7f) y |= 0x7e000000;
#endif
    return y;
}

// To two float8 e4m3, nearest or even; what is too large becomes 448.
AFN_DEVICE uint32_t e4m3_bits(float x) {
    uint32_t bits = static_cast<uint32_t>(bits_of(x)), sign = bits >> 24 & 128;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return 0x7fu;
    float size = float_of(static_cast<int>(bits));
    if (size > 448.0f) return sign | 0x7eu;
    // Added to 2^14, a small number is rounded to a multiple of 2^-9.
    if (size < 0.015625f) return sign | (static_cast<uint32_t>(bits_of(size + 16384.0f)) & 15);
    return sign | (((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3));
}
AFN_DEVICE uint16_t pack_e4m3(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t y;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(y) : "f"(high), "f"(low));
    return y;
#else
    return static_cast<uint16_t>(e4m3_bits(low) | e4m3_bits(high) << 8);
#endif
}

// Asynchronous copies of 16 bytes to shared memory; the rest is zero where fewer are given.
AFN_DEVICE void copy_async(void* to, const void* from, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
}
AFN_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;"); }
// Waits until at most n of this thread's groups are under way.
template <int n>
AFN_DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(n));
}

// Sixteen-byte rows of four 8 x 8 matrices of 16-bit elements: lane i gives the address of row i.
AFN_DEVICE void load_matrices(uint32_t (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row)));
}
AFN_DEVICE void load_matrices_transposed(uint32_t (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row)));
}

// d [16 x 8] += a [16 x 16] b [16 x 8] of a warp, in the layout of mma.m16n8k16.
AFN_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
AFN_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Bulk copies into shared memory, and a barrier that says when all their bytes are there (Hopper). Elsewhere, and where
// addresses or sizes are no multiples of 16, a kernel copies by threads.
AFN_DEVICE constexpr bool has_bulk_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return true;
#else
    return false;
#endif
}
// By one thread, before the block is synchronised; the barrier is 8 bytes of shared memory.
AFN_DEVICE void bulk_start(uint64_t* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)));
    asm volatile("fence.mbarrier_init.release.cluster;");
#endif
}
// By one thread, after what others have read or written there is ordered before it by a barrier of the block, and
// before its copies: how many bytes they are together. What was expected before has come.
AFN_DEVICE void bulk_expect(uint64_t* barrier, uint32_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#endif
}
AFN_DEVICE void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
#endif
}
// By every thread that reads the bytes; phase is 0 for what was expected first, 1 for what came second, 0 again.
AFN_DEVICE void bulk_wait(uint64_t* barrier, uint32_t phase) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(phase)
        : "memory");
#endif
}

}  // namespace afn
#endif

namespace afn {

// The block arrives at a counter in global memory, where count blocks do. True in the last one, whose threads then see
// all that the other blocks wrote before, in L2: by load_global or an asynchronous copy. Barriers carry what one thread
// releases and acquires to and from the whole block, so that no other thread needs a fence. The counter is left at
// zero; last is an int of shared memory.
AFN_DEVICE bool arrive(int* counter, int count, int* last) {
    sync_block();
    if (thread_index() == 0) {
        *last = atomic_add_release_acquire(counter, 1) == count - 1;
        if (*last) atomic_exchange(counter, 0);
    }
    sync_block();
    return *last;
}

}  // namespace afn
