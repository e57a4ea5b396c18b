"""Masks of transformers as packed sequences: padding on either side, several sequences to a row, sliding windows."""

from dataclasses import dataclass, field
from weakref import WeakSet

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from afn_kernels import attention as attention_op
from afn_kernels import attention_backward, explain
from afn_kernels._kept import kept
from afn_kernels.attention.schedule import declare


@dataclass(frozen=True)
class PackedBatch:
    """A batch as packed sequences. ``None`` in place of rows means all of them, in order.

    Args:
        causal: mask keys that come after the query.
        window: of these, a query sees the last ones, itself included; None is all.
        q_rows, k_rows: rows of the flattened batch [B · S] that are packed.
        cu_q, cu_k: [N + 1] int32 boundaries; None for one sequence.
        pads: padding after a causal sequence: rows that see all of its keys; None where there are none.
    """

    causal: bool
    window: int | None = None
    q_rows: torch.Tensor | None = None
    k_rows: torch.Tensor | None = None
    cu_q: torch.Tensor | None = None
    cu_k: torch.Tensor | None = None
    pads: "PackedBatch | None" = None

    def __post_init__(self):
        for x in (self.cu_q, self.cu_k):
            if x is not None and not torch.compiler.is_compiling():
                declare(x)  # layers share what is worked out from boundaries that only this module writes

    @classmethod
    def even(cls, q, k, causal: bool) -> "PackedBatch":
        """Every sequence of the batch has the same length."""
        if len(q) == 1:
            return cls(causal)
        cu_q = _even_bounds(len(q), q.shape[2], q.device)
        same = q.shape[2] == k.shape[2]
        return cls(causal, cu_q=cu_q, cu_k=cu_q if same else _even_bounds(len(q), k.shape[2], q.device))

    @classmethod
    def of(
        cls, mask: torch.Tensor, batch: int, causal: bool, window: int | None = None, reader: nn.Module | None = None
    ) -> "PackedBatch | None":
        """What a mask [B, 1, queries, keys] of transformers says; None where it is neither padding nor packing.

        ``window`` is the sliding window that the layer may have: whether the mask has it too is seen in the mask.

        The layers of a model share one mask, so it is looked at once in a forward, which waits for a GPU once. A layer
        (``reader``) that asks again is in the next one: not every change of a tensor is counted in its version.
        """
        version = None if mask.is_inference() else mask._version
        known = None if version is None else _LAYOUTS.get(mask)  # changes of an inference tensor are not counted
        if known is None or known.about != (version, batch, causal, window) or reader in known.readers:
            with torch.inference_mode(False):  # the next forward may want gradients
                known = _Known((version, batch, causal, window), cls.look(mask, batch, causal, window))
            if mask.is_cuda:
                torch.cuda.current_stream(mask.device).synchronize()  # the next forward may be on another stream
            _LAYOUTS[mask] = known
        if reader is not None:
            known.readers.add(reader)
        return known.layout

    @staticmethod
    def look(mask: torch.Tensor, batch: int, causal: bool, window: int | None = None) -> "PackedBatch | None":
        """The same without remembering it."""
        if mask.dtype != torch.bool and not bool(((mask == 0) | (mask <= torch.finfo(mask.dtype).min / 2)).all()):
            return None  # it adds something else
        return _layout(visible(mask)[:, 0].expand(batch, -1, -1), causal, window)

    def run(
        self, q, k, v, scaling: float, impl: str, softcap: float | None = None, blind: str = "zero"
    ) -> torch.Tensor:
        """[B, H, S, D] to [B, S, H, D]; queries that see no key give zeros, or, ``blind="mean"``, the mean of values.

        The mean is what comes of adding the dtype's lowest number to all scores of a row, as eager attention does.
        """
        values = v
        batch, heads, length, width = q.shape
        q, k, v = map(_tokens, (q, k, v))
        rows = [] if self.q_rows is None else [part.q_rows for part in self._parts()]
        rest = None
        if blind == "mean" and rows and sum(map(len, rows)) < len(q):
            rest = _means(values, q)
        out = self._packed(q, k, v, scaling, impl, softcap=softcap)
        if rows:
            rest = torch.zeros_like(q) if rest is None else rest
            pads = [] if self.pads is None else [self.pads._packed(q, k, v, scaling, impl, softcap=softcap)]
            out = rest.index_copy(0, torch.cat(rows), torch.cat([out, *pads]))
        return out.view(batch, length, heads, width)

    def run_with_lse(self, q, k, v, scaling: float, impl: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the log-sum-exp [B, S, H]; without a gradient."""
        batch, heads, length, width = q.shape
        q, k, v = map(_tokens, (q, k, v))
        out, lse = torch.zeros_like(q), q.new_full(q.shape[:2], float("-inf"), dtype=torch.float32)
        for part in self._parts():
            rows = slice(None) if part.q_rows is None else part.q_rows
            out[rows], lse[rows] = part._packed(q, k, v, scaling, impl, return_lse=True)
        return out.view(batch, length, heads, width), lse.view(batch, length, heads)

    def backward(self, dout, q, k, v, out, lse, scaling: float, impl: str) -> tuple[torch.Tensor, ...] | None:
        """Gradients of q, k and v, all [B, H, S, D]; None where no kernel makes them."""
        shapes = [(len(x), x.shape[2], *x.shape[1::2]) for x in (q, k, v)]
        q, k, v = map(_tokens, (q, k, v))
        if impl not in ("auto", "triton") or (impl == "auto" and not _by_kernel(q, k, v)):
            return None
        dout, out, lse = (x.flatten(0, 1) for x in (dout, out, lse))
        grads = [torch.zeros_like(x) for x in (q, k, v)]
        for part in self._parts():
            rows, keys = (slice(None) if x is None else x for x in (part.q_rows, part.k_rows))
            options = {"cu_seqlens_q": part.cu_q, "cu_seqlens_k": part.cu_k, "causal": part.causal, "scale": scaling}
            inputs = [dout[rows], q[rows], k[keys], v[keys], out[rows].float(), lse[rows]]
            found = attention_backward(*inputs, **options, impl="triton")
            for grad, at, new in zip(grads, (rows, keys, keys), found, strict=True):
                grad[at] += new
        return tuple(grad.view(shape).transpose(1, 2) for grad, shape in zip(grads, shapes, strict=True))

    def _parts(self) -> list["PackedBatch"]:
        return [self] if self.pads is None else [self, self.pads]

    def _packed(self, q, k, v, scaling, impl, **more):
        q = q if self.q_rows is None else q[self.q_rows]
        k, v = (x if self.k_rows is None else x[self.k_rows] for x in (k, v))
        options = {"cu_seqlens_q": self.cu_q, "cu_seqlens_k": self.cu_k, "causal": self.causal}
        options["window"] = None if self.window is None else (self.window - 1, 0)
        return attention_op(q, k, v, scale=scaling, impl=impl, **options, **more)


@dataclass
class _Known:
    """A mask's layout, what it depends on, and which layers have it already."""

    about: tuple
    layout: PackedBatch | None
    readers: WeakSet = field(default_factory=WeakSet)


_LAYOUTS = WeakTensorKeyDictionary()


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """[B, H, S, D] as [B · S, H, D]."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _means(values: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The mean of values [B, H, S, D] over S for each row of q [B · S, H, D]."""
    if q.requires_grad:
        raise ValueError("attention: padding that sees no key has gradients in eager attention")
    if q.dtype == torch.float16:
        raise ValueError("attention: scores of float16 differ by more than its lowest number hides")
    mean = values.mean(2, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    return mean.repeat_interleave(q.shape[1] // values.shape[1], dim=1).repeat_interleave(values.shape[2], dim=0)


def _by_kernel(q, k, v) -> bool:
    return explain("attention", q, k, v, causal=True, return_lse=True).chosen == "triton"


@kept(most=64, on_device=True)
def _even_bounds(batch: int, length: int, device: torch.device) -> torch.Tensor:
    """One tensor for all layers, whose longest sequence is then asked of the GPU once."""
    return torch.arange(0, batch + 1, dtype=torch.int32, device=device) * length


def _bounds(lengths: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def visible(mask: torch.Tensor) -> torch.Tensor:
    """A mask as truth values: those that transformers adds to scores have 0 where a key is seen."""
    return mask if mask.dtype == torch.bool else mask == 0


def _layout(seen: torch.Tensor, causal: bool, window: int | None) -> PackedBatch | None:
    if not causal:
        return _full_layout(seen)
    found = None if window is None else _causal_layout(seen, window)
    return _causal_layout(seen, None) if found is None else found


def _full_layout(seen: torch.Tensor) -> PackedBatch | None:
    """seen [B, queries, keys] where all queries of a sequence see the same keys."""
    batch, queries, _ = seen.shape
    valid = seen[:, 0]
    if not bool((seen == valid[:, None]).all()):
        return None
    lengths = valid.sum(1)
    cu_q = _even_bounds(batch, queries, seen.device)
    return PackedBatch(False, k_rows=valid.flatten().nonzero().squeeze(1), cu_q=cu_q, cu_k=_bounds(lengths))


def _causal_layout(seen: torch.Tensor, window: int | None) -> PackedBatch | None:
    """seen [B, S, S] of causal sequences, several to a row (packed) or padded on either side.

    A token that sees itself is in a sequence, whose first token sees nothing else. One that does not is padding: it
    sees nothing, or, after a sequence, all of that; or, with a window, what of that is in it.
    """
    place = torch.arange(seen.shape[1], device=seen.device)
    back = place[:, None] - place
    near = back >= 0 if window is None else (back >= 0) & (back < window)
    valid = seen.diagonal(dim1=1, dim2=2)
    first = valid & (seen.sum(-1) == 1)
    start = torch.where(first, place, -1).cummax(1).values
    expected = near & (place >= start[..., None])
    pad_all = torch.where(seen.any(-1, keepdim=True), valid[:, None], False)
    follows = torch.nn.functional.pad(valid[:, :-1] & (start[:, :-1] == start[:, 1:]), (1, 0))
    if window is not None and bool((seen.any(-1) & ~valid).any()):
        return None  # padding that looks into the window of a sequence: each row at other keys
    fits = (seen == torch.where(valid[..., None], expected, pad_all)).all() & (first | follows | ~valid).all()
    if not bool(fits):
        return None
    rows = valid.flatten().nonzero().squeeze(1)
    begins = first.flatten()[rows].nonzero().squeeze(1)
    cu = torch.nn.functional.pad(begins, (0, 1), value=len(rows)).int()
    looking = ~valid & seen.any(-1)
    pads = None
    if bool(looking.any()):
        pads = PackedBatch(
            False,
            q_rows=looking.flatten().nonzero().squeeze(1),
            k_rows=rows,
            cu_q=_bounds(looking.sum(1)),
            cu_k=_bounds(valid.sum(1)),
        )
    return PackedBatch(True, window, q_rows=rows, k_rows=rows, cu_q=cu, cu_k=cu, pads=pads)
