"""Other people's attention kernels behind the same call: FlashAttention 3 and 4, PyTorch's varlen, cuDNN and flash."""

import importlib
import importlib.util
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.weak import WeakTensorKeyDictionary

from afn_kernels._registry import constant
from afn_kernels.attention.schedule import version
from afn_kernels.attention.window import UNLIMITED, Window, limits

HALF = (torch.float16, torch.bfloat16)
_longest = WeakTensorKeyDictionary()


def longest(cu_seqlens: Tensor) -> int:
    """The longest sequence. Waits for the GPU once per tensor: a model's layers share one ``cu_seqlens``."""
    then, length = _longest.get(cu_seqlens, (-1, 0))
    if then != version(cu_seqlens):
        length = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
        if not cu_seqlens.is_inference():  # nothing would tell whether it changed
            remember(cu_seqlens, length)
    return length


def remember(cu_seqlens: Tensor, length: int) -> None:
    """``length`` is the longest of ``cu_seqlens`` until it is written to."""
    _longest[cu_seqlens] = version(cu_seqlens), length


@constant  # torch.compile does not trace a search for modules
def installed(module: str) -> bool:
    return _found(module)


@lru_cache
def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def available(module: str):
    """Whether a module and a CUDA GPU are here, as the ``available`` of an implementation."""

    def reason() -> str:
        if not installed(module):
            return f"{module} is not installed"
        return "" if torch.cuda.is_available() else "no CUDA GPU is here"

    return reason


def supports(q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool, carry, **_) -> str:
    """What all of them take: half precision on a GPU, and no log-sum-exp, whose gradient they lack."""
    if q.device.type != "cuda":
        return f"the tensors are on the {q.device.type}"
    if q.dtype not in HALF:
        return f"{str(q.dtype).removeprefix('torch.')}: it takes float16 and bfloat16"
    if return_lse or carry is not None:
        return "its log-sum-exp has no gradient"
    return ""


def supports_window(q: Tensor, k: Tensor, v: Tensor, *, softcap: float = 0.0, **options) -> str:
    return "it caps no scores" if softcap else supports(q, k, v, **options)


def supports_neither(q: Tensor, k: Tensor, v: Tensor, *, window=None, softcap: float = 0.0, **options) -> str:
    if window is not None:
        return "the call has a window: this function is told of none"
    return supports_window(q, k, v, softcap=softcap, **options)


def supports_one_sequence(q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q, causal: bool, **options) -> str:
    if cu_seqlens_q is not None:
        return "the call is packed: it takes one sequence (cu_seqlens_q=None)"
    if causal and len(q) != len(k):
        return "it aligns the causal mask at the start, and q and k differ in length"
    # What the back ends refuse, some only when they are called: there is no way back then.
    if not len(q) or len(k) < 2:
        return f"{len(q)} queries and {len(k)} keys: it takes a query and two keys at least"
    if q.shape[-1] > 128 or q.shape[-1] % 8:
        return f"a head of {q.shape[-1]} is not a multiple of 8 up to 128"
    if torch.are_deterministic_algorithms_enabled():
        return "its backward is not deterministic"
    return supports_neither(q, k, v, **options)


def nothing(*_, **__) -> str:
    return ""


def unmeasured(*_, **__) -> str:
    """Why "auto" leaves one aside: no measurement or publication puts it before our own kernel."""
    return "no figure puts it first on this GPU"


def bounds(x: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, int]:
    """``cu_seqlens`` and the longest length, made up for a call that has one sequence."""
    if cu_seqlens is None:
        # On the device: a copy from the host would wait, and break the capture of a graph.
        return torch.arange(2, dtype=torch.int32, device=x.device) * len(x), len(x)
    return cu_seqlens, longest(cu_seqlens)


def first(out) -> Tensor:
    """Releases differ in whether the log-sum-exp comes along."""
    return out[0] if isinstance(out, tuple) else out


def flash3(q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal, scale, window=None, softcap=0.0, **_):
    # Named only where they are wanted: a build may have been made without them.
    more = {} if window is None else {"window_size": sizes(causal, window)}
    more |= {"softcap": softcap} if softcap else {}
    return _flash("flash_attn_interface", q, k, v, cu_seqlens_q, cu_seqlens_k, causal, scale, **more)


def flash4(q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal, scale, **_):
    return _flash("flash_attn.cute", q, k, v, cu_seqlens_q, cu_seqlens_k, causal, scale)


def sizes(causal: bool, window: Window | None) -> tuple[int, int]:
    """A window as FlashAttention counts it: -1 has no limit."""
    left, right = limits(causal, window) or (UNLIMITED, UNLIMITED)
    return (-1 if left == UNLIMITED else left), (-1 if right == UNLIMITED else right)


def _flash(module, q, k, v, cu_seqlens_q, cu_seqlens_k, causal, scale, **more):
    (cu_q, max_q), (cu_k, max_k) = bounds(q, cu_seqlens_q), bounds(k, cu_seqlens_k)
    call = importlib.import_module(module).flash_attn_varlen_func
    options = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "softmax_scale": scale, "causal": causal}
    options |= {"max_seqlen_q": max_q, "max_seqlen_k": max_k, "deterministic": _deterministic()}
    return first(call(q, k, v, **options, **more))


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def varlen(q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal, scale, window=None, **_):
    from torch.nn.attention.varlen import varlen_attn

    (cu_q, max_q), (cu_k, max_k) = bounds(q, cu_seqlens_q), bounds(k, cu_seqlens_k)
    group = q.shape[1] // k.shape[1]
    if group > 1:  # its signature promises no grouped heads
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    window_size = sizes(causal, window)
    return first(varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window_size))


def cudnn(q, k, v, **options):
    return _one_sequence(SDPBackend.CUDNN_ATTENTION, q, k, v, **options)


def flash(q, k, v, **options):
    return _one_sequence(SDPBackend.FLASH_ATTENTION, q, k, v, **options)


def _one_sequence(backend, q, k, v, *, causal, scale, **_):
    q_1HTD, k_1HTD, v_1HTD = (x.transpose(0, 1)[None] for x in (q, k, v))
    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}  # a branch: with symbolic shapes != is no bool
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(q_1HTD, k_1HTD, v_1HTD, is_causal=causal, scale=scale, **grouped)
    return out[0].transpose(0, 1)
