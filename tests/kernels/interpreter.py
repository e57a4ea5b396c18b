"""Triton's interpreter with a GPU's arithmetic in bfloat16 and FP8.

It keeps such numbers as integers, computes on them as if they were, and rounds by cutting off. Within ``install`` an
operation converts its operands to float32, where sums, products, quotients and square roots of bfloat16 are exact
enough for one more rounding to be the only one (24 bits are at least twice 8, and two more), and rounds the result to
nearest, ties to even. Products of matrices add up in float32. What a kernel of this house has no use for, sums and
atomics in bfloat16, is refused.
"""

from collections.abc import Callable
from functools import lru_cache
from types import ModuleType

import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, ReduceScanOpInterface, TensorHandle

FP8 = {"fp8e4nv": (3, 7, 0x7E), "fp8e5": (2, 15, 0x7B)}  # bits of the fraction, bias, the largest finite code
NARROW = ("bf16", *FP8)
ARITHMETIC = (
    *(
        f"create_{name}"
        for name in ("fadd", "fsub", "fneg", "fmul", "fdiv", "frem", "precise_divf", "approx_divf", "clampf")
    ),
    *(f"create_{name}" for name in ("minimumf", "minnumf", "maximumf", "maxnumf")),
    *(f"create_fcmp{order}{name}" for order in "OU" for name in ("LT", "GT", "LE", "GE", "EQ", "NE")),
    *(f"create_{name}" for name in ("cos", "exp", "exp2", "floor", "ceil", "log", "log2", "sqrt", "rsqrt", "sin")),
    *(f"create_{name}" for name in ("precise_sqrt", "erf")),
)
REFUSED = ("create_fma", "create_atomic_rmw", "create_atomic_cas")


def bf16_to_float32(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def float32_to_bf16(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).astype(np.uint16).reshape(np.shape(x))


@lru_cache
def fp8_values(name: str) -> np.ndarray:
    """What each of the 256 codes is worth."""
    fraction, bias, largest = FP8[name]
    code = np.arange(128)
    exponent, rest = code >> fraction, code & ((1 << fraction) - 1)
    normal = (1 + rest / (1 << fraction)) * 2.0 ** (exponent - bias)
    value = np.where(exponent == 0, rest / (1 << fraction) * 2.0 ** (1 - bias), normal)
    value[largest + 1 :] = np.nan
    if name == "fp8e5":
        value[largest + 1] = np.inf
    return np.concatenate((value, -value)).astype(np.float32)


def float32_to_fp8(x: np.ndarray, name: str) -> np.ndarray:
    """Nearest, ties to even; what is too large becomes the largest, as ``cvt.rn.satfinite`` has it."""
    x = np.asarray(x, np.float32)
    values = fp8_values(name)[: FP8[name][2] + 1]
    between = (values[1:] + values[:-1]) / 2
    size = np.abs(x)
    code = np.searchsorted(between, size)  # of two neighbours that are equally near, the lower one
    tie = (code < len(between)) & (between[np.minimum(code, len(between) - 1)] == size)
    code += tie & (code % 2 == 1)
    return np.where(np.isnan(x), 0x7F, code | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


def widen(x: np.ndarray, name: str) -> np.ndarray:
    """Numbers of a narrow type in float32; others as they are."""
    if name == "bf16":
        return bf16_to_float32(x)
    return fp8_values(name)[x] if name in FP8 else x


def rounded(x: np.ndarray, name: str) -> np.ndarray:
    """Numbers as a narrow type keeps them. From float64 by way of float32, as PyTorch does it."""
    return float32_to_bf16(x) if name == "bf16" else float32_to_fp8(x, name)


def wide(handle):
    """An operand in float32 where it is of a narrow type."""
    name = handle.dtype.scalar.name if isinstance(handle, TensorHandle) else ""
    return TensorHandle(widen(handle.data, name), tl.float32) if name in NARROW else handle


def narrow_of(arguments) -> tl.dtype | None:
    types = (x.dtype.scalar for x in arguments if isinstance(x, TensorHandle))
    return next((found for found in types if found.name in NARROW), None)


def computed(original: Callable) -> Callable:
    """An operation on numbers: in float32, and rounded once."""

    def operation(self, *arguments):
        found = narrow_of(arguments)
        if found is None:
            return original(self, *arguments)
        result = original(self, *(wide(x) for x in arguments))
        if result.data.dtype == np.bool_:
            return TensorHandle(result.data, tl.int1)
        return TensorHandle(rounded(result.data, found.name), found)

    return operation


def refused(name: str, original: Callable) -> Callable:
    def operation(self, *arguments):
        if (found := narrow_of(arguments)) is not None:
            raise NotImplementedError(f"{name} in {found}: kernels convert to float32 first")
        return original(self, *arguments)

    return operation


def cast(original: Callable) -> Callable:
    def operation(self, source, target, rounding=None):
        old, new = source.dtype.scalar.name, target.scalar.name
        if old not in NARROW and new not in NARROW:
            return original(self, source, target, *(() if rounding is None else (rounding,)))
        if rounding not in (None, ir.ROUNDING_MODE.RTNE):
            raise NotImplementedError(f"{old} to {new} in another way than to nearest")
        x = widen(source.data, old)
        x = rounded(x, new) if new in NARROW else x.astype(interpreter._get_np_dtype(target.scalar))
        return TensorHandle(x, target.scalar)

    return operation


def product(original: Callable) -> Callable:
    def create_dot(self, a, b, d, *rest):
        result = original(self, wide(a), wide(b), wide(d), *rest)
        name = d.dtype.scalar.name
        return TensorHandle(rounded(result.data, name), d.dtype.scalar) if name in NARROW else result

    return create_dot


def reduction(original: Callable) -> Callable:
    def check_tensor(self, inputs):
        for x in inputs:
            if x.dtype.scalar.name in NARROW:
                raise NotImplementedError(f"reduction of {x.dtype}: kernels convert to float32 first")
        return original(self, inputs)

    return check_tensor


def device_call(original: Callable) -> Callable:
    """A call of one function by another. At every such call the interpreter looks through all of ``triton.language``
    for what it has not yet put its own in the place of, which takes longer than most of what is called.
    """
    languages: dict[Callable, list] = {}  # those that a function names

    def __call__(self, *arguments, **options):
        if self.fn not in languages:
            named = [x for x in self.fn.__globals__.values() if isinstance(x, ModuleType)]
            languages[self.fn] = [x for x in (tl, tl.core) if any(x is value for value in named)]
        if any(tl.core.is_builtin(language.load) for language in languages[self.fn]):
            return original(self, *arguments, **options)
        return self.rewrite()(*arguments, **options)

    return __call__


def numpy_type(original: Callable) -> Callable:
    """NumPy's type for one of Triton's. The interpreter makes a table of all of them whenever it is asked."""
    known = lru_cache(original)
    return lambda asked: original(asked) if isinstance(asked.scalar, tl.pointer_type) else known(asked.scalar)


def block_type(original: Callable) -> Callable:
    """The constructor of a block's type. Thousands of one type are made, each with names and types for its shape."""
    known: dict[tuple, dict] = {}

    def __init__(self, element_ty, shape):
        sizes = tuple(n.value if isinstance(n, tl.constexpr) else n for n in shape)
        key = (element_ty.name, getattr(element_ty, "address_space", None), sizes)
        if key not in known:
            original(self, element_ty, shape)
            if all(type(n) is int for n in sizes):
                known[key] = vars(self).copy()
        else:
            vars(self).update(known[key])

    return __init__


def tensor(original: Callable) -> Callable:
    """The constructor of a tensor, of which all but the handle follows from its type."""

    def __init__(self, handle, type):
        rest = vars(type).get("_of_a_tensor")
        if rest is None:
            original(self, handle, type)
            rest = {name: value for name, value in vars(self).items() if name != "handle"}
            type._of_a_tensor = rest
        vars(self).update(rest, handle=handle)

    return __init__


def equal(original: Callable) -> Callable:
    return lambda self, other: self is other or original(self, other)


def broadcast(original: Callable) -> Callable:
    """Two operands in one shape, which most of them have already."""

    def broadcast_impl_value(self, a, b):
        blocks = a.type.is_block(), b.type.is_block()
        same = [*a.type.shape] == [*b.type.shape] if all(blocks) else not any(blocks)
        return (a, b) if same else original(self, a, b)

    return broadcast_impl_value


def overflow_check(original: Callable) -> Callable:
    """Sums and products in 64 bits for an assertion that only ``debug`` makes."""

    def check(self, *arguments):
        if not isinstance(self.builder, InterpreterBuilder) or self.builder.options.debug:
            original(self, *arguments)

    return check


@lru_cache
def install() -> None:
    """Once and for all: nobody wants the interpreter's own."""
    builder = InterpreterBuilder
    for name in ARITHMETIC:
        if hasattr(builder, name):
            setattr(builder, name, computed(getattr(builder, name)))
    for name in REFUSED:
        setattr(builder, name, refused(name, getattr(builder, name)))
    builder.cast_impl = cast(builder.cast_impl)
    builder.create_fp_to_fp = cast(builder.create_fp_to_fp)
    builder.create_dot = product(builder.create_dot)
    builder.get_bf16 = lambda self, value: TensorHandle(float32_to_bf16(np.array([value])), tl.bfloat16)
    ReduceScanOpInterface.check_tensor = reduction(ReduceScanOpInterface.check_tensor)
    InterpretedFunction.__call__ = device_call(InterpretedFunction.__call__)
    interpreter._get_np_dtype = numpy_type(interpreter._get_np_dtype)
    for cls in (tl.core.dtype, tl.core.block_type):
        cls.__eq__ = equal(cls.__eq__)
    tl.core.block_type.__init__ = block_type(tl.core.block_type.__init__)
    tl.core.tensor.__init__ = tensor(tl.core.tensor.__init__)
    TritonSemantic.broadcast_impl_value = broadcast(TritonSemantic.broadcast_impl_value)
    TritonSemantic.binary_op_sanitize_overflow_impl = overflow_check(TritonSemantic.binary_op_sanitize_overflow_impl)
