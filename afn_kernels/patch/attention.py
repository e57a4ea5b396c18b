"""Attention modules that call ``afn_kernels.rotary`` and ``afn_kernels.attention``.

Projections, caches and masks stay those of transformers. What is a causal, full, padded or packed batch goes to the
op as packed sequences; decoding steps and any other mask go to the attention function that the model had.
"""

import torch

from afn_kernels import apply_rotary
from afn_kernels import attention as attention_op
from afn_kernels import rotary as rotary_op
from afn_kernels._kept import kept
from afn_kernels.patch.compiled import ATTEND, LOOK
from afn_kernels.patch.packed_batch import PackedBatch
from afn_kernels.patch.state import (
    autocast_dtype,
    bare,
    cache_name,
    count,
    find,
    namespace,
    original,
    parameters,
    plain,
    state,
    theirs,
)

STEP = "a decoding step"  # belongs to the original function: not a fallback
REPLACED = "somebody else has replaced apply_rotary_pos_emb"


def check_rotary(module, row, above) -> str:
    rope = next((module.rotary_emb for module in reversed(above) if hasattr(module, "rotary_emb")), None)
    if rope is None or _of_layer(module, rope, "inv_freq") is None:
        return "no rotary_emb with inv_freq is around it"
    if not theirs(type(rope).forward):
        return f"{type(rope).__name__}, its rotary_emb, has a forward of its own"
    if not theirs(_turn(module)):
        return REPLACED
    if not getattr(module, row.options.get("if_rope", ""), True):
        return "this layer has no positions"
    return ""


def _of_layer(module, rope, name: str):
    """An attribute of the rotary embedding, which Gemma 3 has once for each type of layer."""
    of_type = f"{getattr(module, 'layer_type', '')}_{name}"
    return getattr(rope, of_type) if hasattr(rope, of_type) else getattr(rope, name, None)


def check_attention(module, row, above) -> str:
    old = row.options.get("caller_without")  # an argument of the layer around it, when that still wants three results
    if old and above and old in parameters(type(above[-1]), "forward"):
        return f"this version's {type(above[-1]).__name__} takes {old}"
    return _elsewhere(module, row.options)


def _elsewhere(module, options) -> str:
    """Whether the model is set to an attention function other than the one that is replaced."""
    chosen = module.config._attn_implementation
    replaced = ("sdpa", "eager") if options.get("softcap") else ("sdpa",)  # transformers' sdpa has no soft cap
    if chosen not in replaced:
        return f"attention: the model is set to {chosen!r}"
    if torch.compiler.is_compiling() or theirs(_function(module)):
        return ""
    return f"attention: somebody else has put in a function as {chosen!r}"


def decoder_attention(
    self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **kwargs
):
    """Self-attention of the Llama family, with grouped query heads and rotary positions."""
    options = state(self).options
    shape = hidden_states.shape[:-1]
    q, k, v = (x.view(*shape, -1, self.head_dim) for x in _projected(self, hidden_states))
    if options.get("qk_norm"):
        q, k = self.q_norm(q), self.k_norm(k)
    if getattr(self, options.get("if_rope", ""), True):
        q, k = rotate(self, q, k, position_embeddings, kwargs.get("position_ids"))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if past_key_values is not None:
        k, v = _kept(self, past_key_values, k, v, kwargs)
    dropout = self.attention_dropout if self.training else 0.0
    if window := options.get("window"):
        kwargs["sliding_window"] = find(self, window)
    if softcap := options.get("softcap"):
        kwargs["softcap"] = find(self, softcap)
    out, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
    return self.o_proj(out.reshape(*shape, -1).contiguous()), weights


def _kept(self, cache, k, v, kwargs):
    """Keys and values of the cache once these are in it; since 5.24 it may change the call's other arguments."""
    more = {"kwargs": kwargs} if cache_name(self) == "cache" else {}
    return cache.update(k, v, self.layer_idx, **more)


def _projected(self, x):
    if name := state(self).options.get("qkv"):
        k = self.config.num_key_value_heads * self.head_dim
        return find(self, name)(x).split([self.config.num_attention_heads * self.head_dim, k, k], dim=-1)
    return self.q_proj(x), self.k_proj(x), self.v_proj(x)


def omni_attention(
    self,
    hidden_states,
    attention_mask=None,
    position_ids=None,
    past_key_values=None,
    position_embeddings=None,
    **kwargs,
):
    """The same with arguments in the order of Qwen2.5-Omni."""
    kwargs["position_ids"] = position_ids
    return decoder_attention(self, hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)


def moonshine_attention(
    self,
    hidden_states,
    position_embeddings=None,
    attention_mask=None,
    past_key_values=None,
    key_value_states=None,
    **kwargs,
):
    """Self- and cross-attention of Moonshine, whose queries and keys are turned in self-attention alone."""
    shape, crossed, cache, known = hidden_states.shape[:-1], key_value_states is not None, past_key_values, False
    q = self.q_proj(hidden_states).view(*shape, -1, self.head_dim)
    if cache is not None:
        known = crossed and cache.is_updated.get(self.layer_idx)
        if crossed:
            cache.is_updated[self.layer_idx] = True
        cache = cache.cross_attention_cache if crossed else cache.self_attention_cache
    if known and cache:
        q, k, v = q.transpose(1, 2), cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
    else:
        source = key_value_states if crossed else hidden_states
        k, v = (proj(source).view(shape[0], -1, *q.shape[2:]) for proj in (self.k_proj, self.v_proj))
        if not crossed:
            q, k = rotate(self, q, k, position_embeddings, kwargs.get("position_ids"))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if cache is not None:
            k, v = _kept(self, cache, k, v, kwargs)
    dropout = self.attention_dropout if self.training else 0.0
    out, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
    return self.o_proj(out.reshape(*shape, -1).contiguous()), weights


def packed_attention(self, hidden_states, cu_seqlens, max_seqlen=None, **kwargs):
    """Self-attention within each chunk of a packed batch: [tokens, D] and boundaries, which are those of the op."""
    reason = _elsewhere(self, state(self).options) or (
        "attention: dropout" if self.training and self.attention_dropout else ""
    )
    tokens = len(hidden_states)
    q, k, v = (proj(hidden_states).view(tokens, self.num_heads, -1) for proj in (self.q_proj, self.k_proj, self.v_proj))
    if dtype := autocast_dtype(q):
        q, k, v = (x.to(dtype) for x in (q, k, v))
    if not reason and not plain(q, k, v, cu_seqlens):
        reason = "attention: a tensor is not a plain one"
    if not reason:
        try:
            out = attention_op(q, k, v, cu_seqlens_q=cu_seqlens.int(), scale=self.scaling, impl=state(self).impl)
            return self.out_proj(out.reshape(tokens, -1))
        except ValueError as refused:
            reason = refused
    count(self, reason)
    kwargs = kwargs if max_seqlen is None else {**kwargs, "max_seqlen": max_seqlen}
    return original(self, hidden_states, cu_seqlens, **kwargs)


def encoder_attention(
    self,
    hidden_states,
    key_value_states=None,
    past_key_values=None,
    attention_mask=None,
    output_attentions=False,
    **kwargs,
):
    """Self- and cross-attention of the Whisper family, which scales queries before the product."""
    shape = hidden_states.shape[:-1]
    crossed = key_value_states is not None
    q, scaling = self.q_proj(hidden_states), self.scaling
    if state(self).options.get("scale_queries"):
        q, scaling = q * scaling, 1.0
    q = q.view(*shape, -1, self.head_dim).transpose(1, 2)
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
            k, v = _kept(self, past_key_values, k, v, kwargs)
    dropout = self.dropout if self.training else 0.0
    kwargs["output_attentions"] = output_attentions
    out, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    return self.out_proj(out.reshape(*shape, -1).contiguous()), weights


def self_attention(self, hidden_states, attention_mask=None, output_attentions=False, **kwargs):
    """The same without cross-attention and cache, as the encoders of Voxtral and Qwen2-Audio have it."""
    return encoder_attention(
        self, hidden_states, attention_mask=attention_mask, output_attentions=output_attentions, **kwargs
    )


def cross_or_self_attention(
    self, hidden_states, key_value_states=None, attention_mask=None, output_attentions=False, **kwargs
):
    """The same without a cache, as Wav2Vec2 has it."""
    return encoder_attention(self, hidden_states, key_value_states, None, attention_mask, output_attentions, **kwargs)


def rotate(self, q, k, position_embeddings, position_ids):
    """q and k [B, S, H, D] turned by their positions where these are known, else by cosines and sines."""
    here = state(self)
    cos, sin = position_embeddings
    turn = _turn(self)
    if "rotary" in here.ops:
        try:
            if not torch.compiler.is_compiling() and not theirs(turn):
                raise ValueError(f"rotary: {REPLACED}")
            return _turned_by_op(self, q, k, cos, sin, position_ids)
        except ValueError as refused:
            count(self, refused)
    return turn(q, k, cos, sin, unsqueeze_dim=2)


def _turn(self):
    """What turns queries and keys in the file of a class."""
    return getattr(namespace(self), "apply_rotary_pos_emb", _turned)


def _turned_by_op(self, q, k, cos, sin, position_ids):
    here = state(self)
    if not plain(q, cos, sin) or autocast_dtype(q):
        raise ValueError("rotary: autocast mixes dtypes, or a tensor is not a plain one")
    shape, interleaved = q.shape[:2], here.options.get("interleaved", False)
    if position_ids is None and here.options.get("counted"):
        position_ids = _counted(shape[1], q.device)
    flat = q.flatten(0, 1), k.flatten(0, 1)
    options = {"rotary_dim": cos.shape[-1], "interleaved": interleaved, "impl": here.impl}
    inv_freq = _exact(self, position_ids)
    if inv_freq is None:
        pairs = cos.shape[-1] // 2
        cos, sin = (x[..., :pairs].expand(*shape, pairs).flatten(0, 1) for x in (cos, sin))
        turned = apply_rotary(*flat, cos, sin, **options)
    else:
        positions = position_ids.float().expand(shape).reshape(-1)
        turned = rotary_op(*flat, positions, inv_freq.to(q.device).float(), **options)
    return tuple(x.unflatten(0, shape) for x in turned)


def _exact(self, position_ids):
    """The frequencies, where the angles are positions times these, and nobody scales or watches cosines and sines."""
    rope = getattr(state(self).owner.module, "rotary_emb", None)
    if rope is None:
        return None
    if type(rope).forward is not state(self).options["turned_by"]:
        raise ValueError("rotary: the model has another rotary_emb since the patch")
    if not bare(rope) or position_ids is None or position_ids.dim() != 2 or not plain(position_ids):
        return None
    if hasattr(rope, "mrope_section") or _of_layer(self, rope, "attention_scaling") != 1.0:
        return None
    return _of_layer(self, rope, "inv_freq")


@kept(most=64, on_device=True)
def _counted(length: int, device: torch.device) -> torch.Tensor:
    return torch.arange(length, device=device)[None]


def _turned(q, k, cos, sin, unsqueeze_dim):
    """What Llama's file has under the name of ``apply_rotary_pos_emb``, for classes from a file without one."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    half = q.shape[-1] // 2
    return tuple(x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin for x in (q, k))


def attend(self, q, k, v, mask, *, dropout: float, scaling: float, **kwargs):
    """What transformers' attention functions do: q, k, v [B, H, S, D] to [B, S, H, D], and weights or None."""
    reason = "attention" not in state(self).ops and STEP
    reason = reason or _refused(self, q, k, v, mask, dropout, kwargs)
    if not reason:
        if dtype := autocast_dtype(q):
            q, k, v = (x.to(dtype) for x in (q, k, v))
        causal = self.is_causal if kwargs.get("is_causal") is None else kwargs["is_causal"]
        if mask is not None and torch.compiler.is_compiling():
            number = LOOK(mask, len(q), causal)
            return ATTEND(q, k, v, mask, number, causal, float(scaling), state(self).impl)[0], None
        window = _window(k, kwargs)
        layout = PackedBatch.even(q, k, causal) if mask is None else PackedBatch.of(mask, len(q), causal, window, self)
        blind = "mean" if self.config._attn_implementation == "eager" else "zero"
        if layout is None:
            reason = "attention: the mask is neither padding nor packing"
        else:
            try:
                return layout.run(q, k, v, scaling, state(self).impl, kwargs.get("softcap"), blind), None
            except ValueError as refused:
                reason = refused
    if reason is not STEP:
        count(self, reason)
    return _function(self)(self, q, k, v, mask, dropout=dropout, scaling=scaling, **kwargs)


def _window(k, kwargs) -> int | None:
    """The sliding window, where it hides a key."""
    window = kwargs.get("sliding_window")
    return None if window is None or window >= k.shape[2] else window


def _function(self):
    """The attention function that the model is set to."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = getattr(namespace(self), "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager)


def _refused(self, q, k, v, mask, dropout, kwargs) -> str:
    """Why the op does not run this call; empty when it may."""
    queries, keys = q.shape[2], k.shape[2]
    if queries == 1:
        return STEP
    if reason := _elsewhere(self, state(self).options):
        return reason
    if dropout:
        return "attention: dropout"
    if any(kwargs.get(name) is not None for name in ("position_bias", "cache", "s_aux")):
        return "attention: a bias, a sink or a paged cache"
    if kwargs.get("output_attentions") or getattr(self.config, "output_attentions", False):
        return "attention: its weights are wanted"
    if not plain(q, k, v):
        return "attention: a tensor is not a plain one"
    causal = self.is_causal if kwargs.get("is_causal") is None else kwargs["is_causal"]
    if causal and queries != keys:
        return "attention: more keys than queries"
    if mask is not None and (mask.dtype not in (torch.bool, q.dtype) or mask.dim() != 4 or mask.shape[1] != 1):
        return f"attention: a mask of {str(mask.dtype).removeprefix('torch.')} with {mask.dim()} axes"
    if mask is not None and mask.requires_grad:
        return "attention: a mask that is trained"
    if mask is not None and torch.compiler.is_compiling() and mask.dtype != torch.bool:
        return "attention: a mask that is added, in a compiled graph, which does not know its values"
    if mask is not None and torch.compiler.is_compiling() and (_window(k, kwargs) or kwargs.get("softcap")):
        return "attention: a window or a soft cap, and a mask in a compiled graph"
    return ""
