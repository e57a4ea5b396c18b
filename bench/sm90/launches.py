"""The launches of a workload, compiled for a GPU that is not here."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

import afn_kernels as ak
from afn_kernels import _cuda, _device, _triton
from bench.ops import Workload, workloads


@dataclass(frozen=True)
class Launch:
    """One kernel as it was called: the compiled kernel, bytes of its tensors, its programs and named arguments."""

    name: str
    compiled: object
    bytes: int
    programs: int
    arguments: dict[str, object]


@dataclass(frozen=True)
class CudaLaunch:
    """A kernel of csrc/cuda as it was called: bytes of dynamic shared memory, and its blocks."""

    kernel: _cuda.Kernel
    shared: int
    programs: int


def _stand_in(capability: tuple[int, int]):
    """Stands in for Triton's driver where there is no GPU: a device that is never launched on.

    Triton keeps compiled kernels by device, so each capability has a number of its own.
    """
    number = 10 * capability[0] + capability[1]

    class NoGPU:
        @staticmethod
        def get_current_device():
            return number

        @staticmethod
        def get_current_stream(device):
            return 0

        @staticmethod
        def get_current_target():
            from triton.backends.compiler import GPUTarget

            return GPUTarget("cuda", number, 32)

    return NoGPU()


@contextmanager
def compiling(capability: tuple[int, int] = _device.HOPPER):
    """Within it, a launch compiles its kernel and is noted in the list that is yielded; nothing runs."""
    import triton
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        given = dict(zip(self.arg_names, args, strict=False)) | kwargs
        tensors = {id(x): x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)}
        launches.append(Launch(self.__name__, compiled, sum(x.nbytes for x in tensors.values()), prod(grid), given))
        return compiled

    driver = triton.runtime.driver
    before = dict(vars(driver))  # attributes of other names in each Triton
    driver.set_active(_stand_in(capability))
    JITFunction.run, _triton.compile_only = compile_only, True
    try:
        with _device.assumed(capability):
            yield launches
    finally:
        JITFunction.run, _triton.compile_only = run, False
        vars(driver).update(before)


def has(op: str, impl: str) -> bool:
    """Whether an op's table has an implementation of this name."""
    return any(row.name == impl for row in ak.OPS[op].impls)


def launched(work: Workload, capability: tuple[int, int] = _device.HOPPER) -> list[Launch]:
    """Triton's launches in a workload's forward and, where it has gradients, its backward."""
    if not has(work.op, "triton"):
        return []
    with compiling(capability) as launches:
        gradients_of(work, "triton")
    return launches


def cuda_launched(work: Workload) -> list[CudaLaunch]:
    """The kernels of csrc/cuda that a workload launches, forward and backward, each once."""
    if not has(work.op, "cuda") or "cuda" in work.without:
        return []
    found: dict[str, CudaLaunch] = {}
    _cuda.emulator = lambda kernel, grid, shared, _: found.setdefault(
        kernel.name, CudaLaunch(kernel, shared, prod(grid))
    )
    try:
        gradients_of(work, "cuda")
    finally:
        _cuda.emulator = None
    return list(found.values())


def gradients_of(work: Workload, impl: str) -> None:
    """Calls a workload on tensors without memory, and its backward where it has gradients."""
    inputs = {name: x.requires_grad_(name in work.wrt) for name, x in work.make("meta", work.dtype).items()}
    outs = work.call(inputs, impl)
    if work.wrt:
        outs = [out for out in outs if out.requires_grad]
        torch.autograd.grad(outs, [inputs[name] for name in work.wrt], [torch.empty_like(out) for out in outs])


LENGTHS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 48, 63, 64, 100, 128, 250, 255, 256, 1000, 1024)


def distinct_kernels(op: str) -> dict[str, int]:
    """How many binaries each kernel of an op needs over 20 lengths, the other sizes being its first workload's."""
    work = next(work for work in workloads() if work.op == op)
    seen: dict[str, set] = {}
    for length in LENGTHS:
        for launch in launched(replace(work, make=work.at(length))):
            seen.setdefault(launch.name, set()).add(launch.compiled.hash)
    return {name: len(hashes) for name, hashes in seen.items()}


def compile_each_gradient_alone(op: str) -> None:
    """Backward kernels as they are when a single input wants a gradient; a compiler's error is an error here."""
    work = next(work for work in workloads() if work.op == op)
    for name in work.wrt:
        launched(replace(work, wrt=(name,)))
