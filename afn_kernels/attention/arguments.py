"""What callers of other attention functions write, and what it is called here."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

MASKS = "cu_seqlens_q and cu_seqlens_k for padding (ak.unpad makes them), causal= and window= for the rest"
ELSEWHERE = "a bias or any other mask takes torch.nn.functional.scaled_dot_product_attention"
HERE = {
    "attn_mask": f"there are no mask tensors: {MASKS}; {ELSEWHERE}",
    "attention_mask": f"there are no mask tensors: {MASKS}; {ELSEWHERE}",
    "mask": f"there are no mask tensors: {MASKS}; {ELSEWHERE}",
    "attn_bias": f"there is no bias: {ELSEWHERE}",
    "alibi_slopes": f"there is no bias: {ELSEWHERE}",
    "dropout_p": "there is no dropout: leave it out",
    "p": "there is no dropout: leave it out",
    "is_causal": "it is called causal",
    "window_size": "it is called window",
    "window_left": "it is called window=(left, 0)",
    "softmax_scale": "it is called scale",
    "sm_scale": "it is called scale",
    "logits_soft_cap": "it is called softcap",
    "enable_gqa": "leave it out: k and v may have fewer heads",
    "max_seqlen_q": "leave it out: cu_seqlens_q says it",
    "max_seqlen_k": "leave it out: cu_seqlens_k says it",
    "cu_seqlens": "it is called cu_seqlens_q",
    "return_attn_probs": "the weights are never made; return_lse=True returns the log-sum-exp",
    "deterministic": "leave it out: torch.use_deterministic_algorithms decides",
    "block_table": "a paged cache takes ak.paged_attention, or ak.decode_attention for a few new tokens",
}

P = ParamSpec("P")
R = TypeVar("R")


def only_its_own(attend: Callable[P, R]) -> Callable[P, R]:
    """``attend`` with an answer in one line to the names and the places of other libraries' arguments."""
    names = frozenset(attend.__kwdefaults__) | {"q", "k", "v"}

    @wraps(attend)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > 3:
            more = "cu_seqlens_q=, cu_seqlens_k=, causal=, window=, softcap=, scale="
            raise TypeError(f"attention: {len(args)} positional arguments; after q, k and v they have names: {more}")
        for name in kwargs:
            if name not in names:
                raise TypeError(f"attention: no argument {name!r}: {HERE.get(name) or _all(names)}")
        return attend(*args, **kwargs)

    return call


def _all(names: frozenset[str]) -> str:
    return f"there are {', '.join(sorted(names))}"
