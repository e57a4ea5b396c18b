"""Which of other people's attention kernels take a call: FlashAttention 3 and 4, PyTorch's FlashAttention 2, cuDNN.

Under ``impl="auto"`` and without a measurement: FlashAttention 3 and then 4 on a Hopper GPU, where one is installed;
for sequences of one length cuDNN; for packed ones PyTorch's FlashAttention 2; then our own. Published forward figures
of an H100 stand behind the order: 616 to 685 TFLOP/s, 539 to 607, and 350 to 400 for FlashAttention 2.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections import Counter
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from afn_kernels._registry import constant
from afn_kernels.attention.schedule import declare, version

HALF = (torch.float16, torch.bfloat16)
NAMES = ("flash3", "flash4", "varlen", "flash", "cudnn")
DEVICES = ("cuda",)
HOPPER, BLACKWELL = 9, 10
CUDNN = 91500  # PyTorch itself prefers cuDNN from here on; before it has a fault
# cuDNN builds a plan for every new shape, published as 40 to 400 ms. Our kernel loses about a quarter of 600 TFLOP/s to
# it, so that a plan of 100 ms has paid for itself after 0.1 s / (1 / 450 − 1 / 600) TFLOP/s: until a shape has come as
# often as that it is not known to come again, and at most twice the least time is spent.
WORTH_A_PLAN = 1.8e14

_longest = WeakTensorKeyDictionary()
_work: Counter[tuple] = Counter()
_set_aside: dict[tuple, str] = {}


def known(cu_seqlens: Tensor) -> int | None:
    """The longest sequence if it was told, or asked for on a GPU, since PyTorch last counted a write to it."""
    then, length, told = _longest.get(cu_seqlens, (-1, 0, False))
    return length if then == version(cu_seqlens) and (told or _far(cu_seqlens)) else None


def _far(x: Tensor) -> bool:
    """Whether looking at values waits."""
    return x.device.type != "cpu"


def longest(cu_seqlens: Tensor) -> int:
    """The longest sequence. Waits for the GPU once per tensor: a model's layers share one ``cu_seqlens``.

    What PyTorch does not count as a write (a collective, ``.data``) goes unseen on a GPU, as ``attention`` says.
    """
    if (length := known(cu_seqlens)) is None:
        length = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
        if _far(cu_seqlens) and not cu_seqlens.is_inference():  # nothing would tell whether it changed
            _longest[cu_seqlens] = version(cu_seqlens), length, False
    return length


def note_longest(cu_seqlens: Tensor, length: int) -> None:
    """``longest`` will say ``length`` until the boundaries are written to, without waiting for the GPU."""
    if _far(cu_seqlens) and not cu_seqlens.is_inference():
        _longest[cu_seqlens] = version(cu_seqlens), length, False


def remember(cu_seqlens: Tensor, length: int) -> None:
    """All sequences of ``cu_seqlens``, which this library has made, have ``length`` until it is written to."""
    declare(cu_seqlens)
    _longest[cu_seqlens] = version(cu_seqlens), length, True


def equal(
    q: Tensor, k: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None
) -> tuple[int, int, int] | None:
    """Sequences, queries of each and keys of each, where they are known to have one length.

    It does not depend on what other calls have asked: equal calls run the same kernel.
    """
    if cu_seqlens_q is None or cu_seqlens_k is None or len(cu_seqlens_q) == 2:
        return 1, len(q), len(k)
    lengths = [length for x in (cu_seqlens_q, cu_seqlens_k) if (length := _told(x)) is not None]
    return (len(cu_seqlens_q) - 1, *lengths) if len(lengths) == 2 else None


def _told(cu_seqlens: Tensor) -> int | None:
    then, length, told = _longest.get(cu_seqlens, (-1, 0, False))
    return length if told and then == version(cu_seqlens) else None


@constant  # torch.compile does not trace a search for modules
def installed(module: str) -> bool:
    return _found(module)


@lru_cache
def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # of a parent package; a module without a spec
        return False


def available(module: str):
    """Whether a module and a CUDA GPU are here, as the ``available`` of an implementation."""

    def reason() -> str:
        if not installed(module):
            return f"{module} is not installed"
        return "" if _gpu() else "no CUDA GPU is here"

    return reason


@constant
def _gpu() -> bool:
    return torch.cuda.is_available()


@constant
def generation(device: torch.device) -> int:
    """The first number of a GPU's compute capability: 9 is Hopper."""
    return torch.cuda.get_device_capability(device)[0]


@constant
def _cudnn_version() -> int:
    return torch.backends.cudnn.version() or 0


@constant
def _ragged() -> bool:
    return os.environ.get("TORCH_CUDNN_SDPA_AVOID_RECOMPILE") == "1"


def capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def supports(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0, **_) -> str:
    """What all of them take."""
    if q.device.type not in DEVICES:
        return f"the tensors are on the {q.device.type}"
    if q.dtype not in HALF:
        return f"{str(q.dtype).removeprefix('torch.')}: it takes float16 and bfloat16"
    if q.shape[-1] % 8 or not 0 < q.shape[-1] <= 256:
        return f"a head of {q.shape[-1]} is not a multiple of 8 up to 256"
    return f"the scale {scale} is not above zero" if scale <= 0 else ""


def supports_flash3(q: Tensor, k: Tensor, v: Tensor, **options) -> str:
    if reason := supports(q, k, v, **options):
        return reason
    if torch.are_deterministic_algorithms_enabled() and q.shape[-1] > 192:
        return f"its backward is not deterministic for heads of {q.shape[-1]}"
    if generation(q.device) != HOPPER:
        return "it is for Hopper GPUs"
    return ""


def supports_flash4(q: Tensor, k: Tensor, v: Tensor, **options) -> str:
    if reason := supports(q, k, v, **options):
        return reason
    if (found := generation(q.device)) not in (HOPPER, BLACKWELL):
        return "it is for Hopper and Blackwell GPUs"
    wide = found == BLACKWELL and q.shape[-1] > 128
    return f"heads of {q.shape[-1]} are not among its on this GPU" if wide else ""


def supports_varlen(q: Tensor, k: Tensor, v: Tensor, *, softcap: float = 0.0, **options) -> str:
    return "it caps no scores" if softcap else supports(q, k, v, **options)


def supports_flash(q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q, **options) -> str:
    if cu_seqlens_q is not None:
        return "the call is packed: it takes one sequence (cu_seqlens_q=None)"
    return supports_varlen(q, k, v, **options)


def supports_cudnn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q,
    cu_seqlens_k=None,
    causal: bool,
    window=None,
    softcap=0.0,
    **options,
) -> str:
    if reason := supports(q, k, v, **options):
        return reason
    if window is not None or softcap:
        return "it is told of no window and caps no scores"
    if q.shape[-1] > 128:
        return f"a head of {q.shape[-1]} is more than 128"
    if torch.are_deterministic_algorithms_enabled():
        return "its backward is not deterministic"
    if _ragged():
        return "TORCH_CUDNN_SDPA_AVOID_RECOMPILE=1 gives its log-sum-exp another layout"
    if torch.compiler.is_compiling():
        if cu_seqlens_q is not None:
            return "the call is packed: it takes sequences of one length"
        lengths = 1, len(q), len(k)
    else:
        lengths = equal(q, k, cu_seqlens_q, cu_seqlens_k)
    if lengths is None:
        return "the call is packed: it takes sequences that are known to have one length"
    if lengths[1] < 2 or lengths[2] < 2:
        return f"{lengths[1]} queries and {lengths[2]} keys: it takes two of each at least"
    if causal and lengths[1] != lengths[2]:
        return "it aligns the causal mask at the start, and q and k differ in length"
    return ""


def never(name: str):
    """Why "auto" leaves a provider aside wherever it was measured, as the ``never`` of an implementation."""

    def reason(q: Tensor, k: Tensor, v: Tensor, **options) -> str:
        if torch.compiler.is_compiling():
            return "a traced call has no length to count" if name == "cudnn" else ""
        if refusal := _set_aside.get(kind(name, q, k, **options)):
            return refusal
        return _never_cudnn(q, k, **options) if name == "cudnn" else _never_packed(q, **options)

    return reason


def _never_packed(q: Tensor, *, cu_seqlens_q=None, cu_seqlens_k=None, **_) -> str:
    boundaries = [x for x in (cu_seqlens_q, cu_seqlens_k) if x is not None and len(x) > 2]
    if not boundaries:
        return ""
    if capturing(q):
        return "the lengths of a captured call may change between replays"
    if any(x.is_inference() and known(x) is None for x in boundaries):
        return "it would wait for the GPU at every call: boundaries of inference mode cannot tell whether they changed"
    return ""


def avoid_varlen(q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q, **options) -> str:
    return "no figure puts it before our own for one sequence" if cu_seqlens_q is None else ""


def avoid_cudnn(q: Tensor, *_, **__) -> str:
    if torch.compiler.is_compiling() or generation(q.device) in (HOPPER, BLACKWELL):
        return ""
    return "published figures put it first on Hopper and Blackwell GPUs only"


def nothing(*_, **__) -> str:
    return ""


def unmeasured(*_, **__) -> str:
    """Why "auto" leaves one aside: no measurement or publication puts it before our own kernel."""
    return "no figure puts it first on this GPU"


def _never_cudnn(q: Tensor, k: Tensor, *, cu_seqlens_q=None, cu_seqlens_k=None, causal=False, **_) -> str:
    if (found := _cudnn_version()) < CUDNN:
        return f"cuDNN {found} is older than {CUDNN}"
    lengths = equal(q, k, cu_seqlens_q, cu_seqlens_k)
    if lengths is None or _work[_shape(q, k, lengths, causal)] < WORTH_A_PLAN:
        return "it would build a plan for this shape, which has not come often enough for that"
    return ""


def met(q: Tensor, k: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, causal: bool) -> None:
    """Counts the work of a call towards a plan of cuDNN for its shape."""
    if (lengths := equal(q, k, cu_seqlens_q, cu_seqlens_k)) is not None:
        _work[_shape(q, k, lengths, causal)] += 4 * len(q) * lengths[2] * q.shape[1] * q.shape[2] / (2 if causal else 1)


def _shape(q: Tensor, k: Tensor, lengths: tuple[int, int, int], causal: bool) -> tuple:
    return q.dtype, q.device, *lengths, q.shape[1], k.shape[1], q.shape[2], causal


def kind(name: str, q: Tensor, k: Tensor, *, cu_seqlens_q=None, causal=False, window=None, softcap=0.0, **_) -> tuple:
    """Which calls a refusal speaks for."""
    shape = q.dtype, q.shape[-1], q.shape[1] // k.shape[1]
    return name, *shape, cu_seqlens_q is None, causal, window is None, softcap == 0


def set_aside(of: tuple, error: Exception) -> None:
    """Remembers that a provider refused such a call, and says so once."""
    if of not in _set_aside:
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        _set_aside[of] = f"it refused such a call: {said}"
        warnings.warn(f"attention: {of[0]} refused a call, which our own kernel runs instead: {said}", stacklevel=2)
