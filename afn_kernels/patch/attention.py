"""Attention modules that call ``afn_kernels.rotary`` and ``afn_kernels.attention``.

Projections, caches and masks stay those of transformers. What is a causal, full, padded or packed batch goes to the
op as packed sequences; decoding steps and any other mask go to the attention function that the model had.
"""

from dataclasses import dataclass

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from afn_kernels import attention as attention_op
from afn_kernels import rotary as rotary_op
from afn_kernels._kept import kept
from afn_kernels.patch.state import autocast_dtype, bare, count, find, namespace, plain, state

STEP = "a decoding step"  # belongs to the original function: not a fallback


def check_rotary(module, row, above) -> str:
    rope = next((module.rotary_emb for module in reversed(above) if hasattr(module, "rotary_emb")), None)
    if rope is None or not hasattr(rope, "inv_freq"):
        return "no rotary_emb with inv_freq is around it"
    if getattr(rope, "attention_scaling", None) != 1.0:
        return f"its {type(rope).__name__} scales cosines and sines"
    return ""


def check_attention(module, row, above) -> str:
    chosen = module.config._attn_implementation
    return "" if chosen == "sdpa" else f"the model is set to {chosen!r}: sdpa is what is replaced"


def decoder_attention(
    self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **kwargs
):
    """Self-attention of the Llama family, with grouped query heads and rotary positions."""
    options = state(self).options
    shape = hidden_states.shape[:-1]
    q, k, v = (proj(hidden_states).view(*shape, -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
    if options["qk_norm"]:
        q, k = self.q_norm(q), self.k_norm(k)
    q, k = rotate(self, q, k, position_embeddings, kwargs.get("position_ids"))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if past_key_values is not None:
        k, v = past_key_values.update(k, v, self.layer_idx)
    dropout = self.attention_dropout if self.training else 0.0
    if options["window"]:
        kwargs["sliding_window"] = find(self, options["window"])
    out, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
    return self.o_proj(out.reshape(*shape, -1).contiguous()), weights


def encoder_attention(
    self,
    hidden_states,
    key_value_states=None,
    past_key_values=None,
    attention_mask=None,
    output_attentions=False,
    **kwargs,
):
    """Self- and cross-attention of the Whisper family; queries are scaled before the product, as there."""
    shape = hidden_states.shape[:-1]
    crossed = key_value_states is not None
    q = (self.q_proj(hidden_states) * self.scaling).view(*shape, -1, self.head_dim).transpose(1, 2)
    known = False
    if hasattr(past_key_values, "cross_attention_cache"):
        known = crossed and past_key_values.is_updated.get(self.layer_idx)
        if crossed:
            past_key_values.is_updated[self.layer_idx] = True
        past_key_values = past_key_values.cross_attention_cache if crossed else past_key_values.self_attention_cache
    if known and past_key_values:
        k, v = past_key_values.layers[self.layer_idx].keys, past_key_values.layers[self.layer_idx].values
    else:
        source = key_value_states if crossed else hidden_states
        k, v = (
            proj(source).view(shape[0], -1, self.num_heads, self.head_dim).transpose(1, 2)
            for proj in (self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
    dropout = self.dropout if self.training else 0.0
    kwargs["output_attentions"] = output_attentions
    out, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=1.0, **kwargs)
    return self.out_proj(out.reshape(*shape, -1).contiguous()), weights


def self_attention(self, hidden_states, attention_mask=None, output_attentions=False, **kwargs):
    """The same without cross-attention and cache, as the encoders of Voxtral and Qwen2-Audio have it."""
    return encoder_attention(
        self, hidden_states, attention_mask=attention_mask, output_attentions=output_attentions, **kwargs
    )


def rotate(self, q, k, position_embeddings, position_ids):
    """q and k [B, S, H, D] turned by their positions: by the op where these are known, else by cosines and sines."""
    here = state(self)
    rope = here.partner
    if "rotary" in here.ops:
        reason = _no_rotation(q, rope, position_ids)
        if not reason:
            rows, length = q.shape[:2]
            positions = position_ids.float().expand(rows, length).reshape(-1)
            try:
                flat = rotary_op(
                    q.flatten(0, 1), k.flatten(0, 1), positions, rope.inv_freq.to(q.device).float(), impl=here.impl
                )
                return tuple(x.unflatten(0, (rows, length)) for x in flat)
            except ValueError as refused:
                reason = refused
        count(self, reason)
    cos, sin = position_embeddings
    return namespace(self).apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)


def _no_rotation(q, rope, position_ids) -> str:
    if not bare(rope):
        return "rotary: its module has hooks"
    if position_ids is None or position_ids.dim() != 2:
        return "rotary: the attention is not told the positions of a batch"
    if not plain(q, position_ids) or autocast_dtype(q):
        return "rotary: autocast mixes dtypes, or a tensor is not a plain one"
    return ""


def attend(self, q, k, v, mask, *, dropout: float, scaling: float, **kwargs):
    """What transformers' attention functions do: q, k, v [B, H, S, D] to [B, S, H, D], and weights or None."""
    reason = "attention" not in state(self).ops and STEP
    reason = reason or _refused(self, q, k, v, mask, dropout, kwargs)
    if not reason:
        if dtype := autocast_dtype(q):
            q, k, v = (x.to(dtype) for x in (q, k, v))
        causal = self.is_causal if kwargs.get("is_causal") is None else kwargs["is_causal"]
        layout = PackedBatch.even(q, k, causal) if mask is None else PackedBatch.of(mask, len(q), causal)
        if layout is None:
            reason = "attention: the mask is neither padding nor packing"
        else:
            try:
                return layout.run(q, k, v, scaling, state(self).impl), None
            except ValueError as refused:
                reason = refused
    if reason is not STEP:
        count(self, reason)
    return _original_function(self)(self, q, k, v, mask, dropout=dropout, scaling=scaling, **kwargs)


def _original_function(self):
    """The attention function the model was configured with."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = namespace(self).eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager)


def _refused(self, q, k, v, mask, dropout, kwargs) -> str:
    """Why the op does not run this call; empty when it may."""
    queries, keys = q.shape[2], k.shape[2]
    if queries == 1:
        return STEP
    if self.config._attn_implementation != "sdpa":
        return f"attention: the model is set to {self.config._attn_implementation!r}"
    if dropout:
        return "attention: dropout"
    if any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "cache", "s_aux")):
        return "attention: a soft cap, a bias, a sink or a paged cache"
    window = kwargs.get("sliding_window")
    if window is not None and keys > window:
        return f"attention: a window of {window} keys"
    if not plain(q, k, v):
        return "attention: a tensor is not a plain one"
    causal = self.is_causal if kwargs.get("is_causal") is None else kwargs["is_causal"]
    if causal and queries != keys:
        return "attention: more keys than queries"
    if mask is not None and (mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1):
        return f"attention: a mask of {str(mask.dtype).removeprefix('torch.')} with {mask.dim()} axes"
    if mask is not None and torch.compiler.is_compiling():
        return "attention: a compiled graph cannot look into a mask"
    return ""


@dataclass(frozen=True)
class PackedBatch:
    """A batch as packed sequences. ``None`` in place of rows means all of them, in order.

    Args:
        causal: mask keys that come after the query.
        q_rows, k_rows: rows of the flattened batch [B · S] that are packed.
        cu_q, cu_k: [N + 1] int32 boundaries; None for one sequence.
        pads: padding after a causal sequence: rows that see all of its keys; None where there are none.
    """

    causal: bool
    q_rows: torch.Tensor | None = None
    k_rows: torch.Tensor | None = None
    cu_q: torch.Tensor | None = None
    cu_k: torch.Tensor | None = None
    pads: "PackedBatch | None" = None

    @classmethod
    def even(cls, q, k, causal: bool) -> "PackedBatch":
        """Every sequence of the batch has the same length."""
        if len(q) == 1:
            return cls(causal)
        cu_q = _even_bounds(len(q), q.shape[2], q.device)
        same = q.shape[2] == k.shape[2]
        return cls(causal, cu_q=cu_q, cu_k=cu_q if same else _even_bounds(len(q), k.shape[2], q.device))

    @classmethod
    def of(cls, mask: torch.Tensor, batch: int, causal: bool) -> "PackedBatch | None":
        """What a mask [B, 1, queries, keys] of transformers says; None where it is neither padding nor packing.

        The layers of a model share one mask, so it is looked at once, which waits for a GPU once.
        """
        version = None if mask.is_inference() else mask._version
        known = None if version is None else _LAYOUTS.get(mask)  # changes of an inference tensor are not counted
        if known is None or known[:3] != (version, batch, causal):
            with torch.inference_mode(False):  # the next forward may want gradients
                seen = mask[:, 0].expand(batch, -1, -1)
                known = (version, batch, causal, _causal_layout(seen) if causal else _full_layout(seen))
            if mask.is_cuda:
                torch.cuda.current_stream(mask.device).synchronize()  # the next forward may be on another stream
            _LAYOUTS[mask] = known
        return known[3]

    def run(self, q, k, v, scaling: float, impl: str) -> torch.Tensor:
        """[B, H, S, D] to [B, S, H, D]; zeros for queries that see no key."""
        batch, heads, length, width = q.shape
        q, k, v = (x.transpose(1, 2).reshape(-1, x.shape[1], width) for x in (q, k, v))
        out = self._packed(q, k, v, scaling, impl)
        if self.q_rows is not None:
            rows, parts = [self.q_rows], [out]
            if self.pads is not None:
                rows.append(self.pads.q_rows)
                parts.append(self.pads._packed(q, k, v, scaling, impl))
            out = torch.zeros_like(q).index_copy(0, torch.cat(rows), torch.cat(parts))
        return out.view(batch, length, heads, width)

    def _packed(self, q, k, v, scaling, impl):
        q = q if self.q_rows is None else q[self.q_rows]
        k, v = (x if self.k_rows is None else x[self.k_rows] for x in (k, v))
        options = {"cu_seqlens_q": self.cu_q, "cu_seqlens_k": self.cu_k, "causal": self.causal}
        return attention_op(q, k, v, scale=scaling, impl=impl, **options)


_LAYOUTS = WeakTensorKeyDictionary()


@kept(most=64)
def _even_bounds(batch: int, length: int, device: torch.device) -> torch.Tensor:
    """One tensor for all layers, whose longest sequence is then asked of the GPU once."""
    return torch.arange(0, batch + 1, dtype=torch.int32, device=device) * length


def _bounds(lengths: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def _full_layout(seen: torch.Tensor) -> PackedBatch | None:
    """seen [B, queries, keys] where all queries of a sequence see the same keys."""
    batch, queries, _ = seen.shape
    valid = seen[:, 0]
    if not bool((seen == valid[:, None]).all()):
        return None
    lengths = valid.sum(1)
    cu_q = _even_bounds(batch, queries, seen.device)
    return PackedBatch(False, k_rows=valid.flatten().nonzero().squeeze(1), cu_q=cu_q, cu_k=_bounds(lengths))


def _causal_layout(seen: torch.Tensor) -> PackedBatch | None:
    """seen [B, S, S] of causal sequences, several to a row (packed) or padded on either side.

    A token that sees itself is in a sequence, which begins as many tokens back as it sees. One that does not is
    padding: it sees nothing, or, after a sequence, all of that.
    """
    place = torch.arange(seen.shape[1], device=seen.device)
    valid = seen.diagonal(dim1=1, dim2=2)
    start = place - seen.sum(-1) + 1
    expected = (place <= place[:, None]) & (place >= start[..., None])
    pad_all = torch.where(seen.any(-1, keepdim=True), valid[:, None], False)
    follows = torch.nn.functional.pad(valid[:, :-1] & (start[:, :-1] == start[:, 1:]), (1, 0))
    first = valid & (start == place)
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
    return PackedBatch(True, q_rows=rows, k_rows=rows, cu_q=cu, cu_k=cu, pads=pads)
