"""Forwards that call the ops: norms, feed-forward blocks, the encoder's tail and its time embedding.

Each has the signature of what it replaces, and runs the original where an op cannot run the call.
"""

import math
import threading

import torch
import torch.nn.functional as F
from torch import nn

from afn_kernels import bias_gelu as bias_gelu_op
from afn_kernels import geglu as geglu_op
from afn_kernels import layer_norm as layer_norm_op
from afn_kernels import pool_norm as pool_norm_op
from afn_kernels import rms_norm as rms_norm_op
from afn_kernels import rote as rote_op
from afn_kernels import swiglu as swiglu_op
from afn_kernels.patch.state import (
    autocast_dtype,
    bare,
    cache_name,
    count,
    find,
    linear,
    namespace,
    original,
    plain,
    state,
)

NOT_PLAIN = "a tensor is not a plain one"


def check_rms_norm(module: nn.Module, row, above) -> str:
    weight = getattr(module, row.options["weight"])
    return "" if weight is not None and weight.dim() == 1 else "it has no weight of one axis"


def rms_norm(self, hidden_states):
    """Llama's RMSNorm, and torch's."""
    here = state(self)
    weight, eps = getattr(self, here.options["weight"]), getattr(self, here.options["eps"])
    eps = torch.finfo(torch.promote_types(hidden_states.dtype, torch.float32)).eps if eps is None else eps
    offset = here.options["offset"]
    try:
        if offset is None and hidden_states.dtype != weight.dtype:  # Llama's then returns the wider dtype
            reason = f"the weight is {weight.dtype}, the input {hidden_states.dtype}"
        elif plain(hidden_states, weight):
            return rms_norm_op(hidden_states, weight, eps=eps, offset=offset, impl=here.impl)
        else:
            reason = NOT_PLAIN
    except ValueError as refused:
        reason = refused
    count(self, reason)
    return original(self, hidden_states)


def check_layer_norm(module: nn.Module, row, above) -> str:
    return "" if len(module.normalized_shape) == 1 else "it normalises several axes"


def layer_norm(self, input):
    """torch.nn.LayerNorm; after a pooling that was put off, both at once."""
    here = state(self)
    given = [x for x in (input, self.weight, self.bias) if x is not None]
    pooled = _thread() not in here.waiting
    here.waiting.discard(_thread())
    op = layer_norm_op if pooled else pool_norm_op
    try:
        if plain(*given):
            return op(input, self.weight, self.bias, eps=self.eps, impl=here.impl)
        reason = NOT_PLAIN
    except ValueError as refused:
        reason = refused
    count(self, reason)
    if not pooled:
        input = original(here.partner, input.transpose(1, 2)).transpose(1, 2)
    return original(self, input)


def _thread() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def check_pool_norm(module: nn.Module, row, above) -> str:
    pool = find(module, row.options["pool"])
    options = [getattr(pool, name, None) for name in ("kernel_size", "stride", "padding", "ceil_mode")]
    if type(pool) is not nn.AvgPool1d or options != [(2,), (2,), (0,), False]:
        return "its pooling is not a mean over two frames"
    return check_layer_norm(find(module, row.options["norm"]), row, above)


def put_off_pooling(self, input):
    """AvgPool1d of [B, D, S] whose result only a LayerNorm reads: that one pools."""
    norm = state(self).partner
    if not (bare(self, norm) and plain(norm.weight, norm.bias) and input.dtype == norm.weight.dtype):
        count(self, "hooks see what is between pooling and norm, or their dtypes differ")
        return original(self, input)
    state(norm).waiting.add(_thread())
    return input


def check_swiglu(module: nn.Module, row, above) -> str:
    return _not_silu(find(module, row.options["activation"]))


def check_geglu(module: nn.Module, row, above) -> str:
    return _not_gelu(find(module, row.options["activation"]))


def _not_silu(activation: nn.Module) -> str:
    name = type(activation).__name__
    return "" if name in ("SiLU", "SiLUActivation") else f"its activation is {name}, not SiLU"


def _not_gelu(activation: nn.Module) -> str:
    return "" if approximation(activation) else f"its activation is {type(activation).__name__}, not GELU"


def _not_exact_gelu(activation: nn.Module) -> str:
    exact = approximation(activation) == "none"
    return "" if exact else f"its activation is {type(activation).__name__}, not the exact GELU"


GELUS = {"GELU": "none", "GELUActivation": "none", "GELUTanh": "tanh"}


def approximation(activation: nn.Module) -> str:
    """How a GELU is computed, in torch's words; empty for anything else."""
    name = type(activation).__name__
    return getattr(activation, "approximate", GELUS[name]) if name in GELUS else ""


def gated_mlp(self, x):
    """A gated MLP; its projections stay modules, whoever has wrapped them."""
    options = state(self).options
    activation = find(self, options["activation"])
    other = _not_gelu(activation) if "geglu" in state(self).ops else _not_silu(activation)
    if other or not bare(activation):
        count(self, other or "the activation has hooks")
        return original(self, x)
    x = find(self, options["before"])(x) if options["before"] else x
    gate = find(self, options["gate"])(x)
    if options["up"]:
        up = find(self, options["up"])(x)
    else:
        first, second = gate.chunk(2, dim=-1)
        gate, up = (first, second) if options["gate_first"] else (second, first)
    product, reason = None, NOT_PLAIN
    try:
        if plain(gate, up):
            product = _product(self, activation, gate, up)
    except ValueError as refused:
        reason = refused
    if product is None:
        count(self, reason)
        product = activation(gate) * up
    dropout = find(self, options["dropout"]) if options["dropout"] else nn.Identity()
    return dropout(find(self, options["down"])(dropout(product)))


def _product(self, activation, gate, up):
    here = state(self)
    if "geglu" in here.ops:
        return geglu_op(gate, up, approximate=approximation(activation), impl=here.impl)
    return swiglu_op(gate, up, impl=here.impl)


def check_bias_gelu(module: nn.Module, row, above) -> str:
    activation, first = find(module, row.options["activation"]), find(module, row.options["linear"])
    if other := _not_exact_gelu(activation):
        return other
    if getattr(first, "bias", None) is None:
        return "its first projection has no bias"
    return ""


def linear_gelu(self, first: nn.Module, activation: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """GELU of a projection, its bias added by the op."""
    if not plain(x):
        count(self, NOT_PLAIN)
    elif not linear(first) or not bare(activation):
        count(self, f"{type(first).__name__} or the activation has hooks or is not a plain module")
    elif other := _not_exact_gelu(activation):
        count(self, other)
    elif first.bias is None:
        count(self, "its first projection has no bias")
    elif autocast_dtype(x):
        count(self, "under autocast product and bias have different dtypes")
    else:
        try:
            return bias_gelu_op(F.linear(x, first.weight), first.bias, impl=state(self).impl)
        except ValueError as refused:
            count(self, refused)
    return activation(first(x))


def mlp(self, hidden_states):
    """Linear, GELU, Linear, and dropout after the last two where there is any."""
    options = state(self).options
    inside, last = options["dropouts"] or (None, None)
    first, activation = find(self, options["linear"]), find(self, options["activation"])
    hidden_states = linear_gelu(self, first, activation, hidden_states)
    hidden_states = find(self, inside)(hidden_states) if inside else hidden_states
    hidden_states = find(self, options["last"])(hidden_states)
    return find(self, last)(hidden_states) if last else hidden_states


def encoder_layer(self, hidden_states, attention_mask, **kwargs):
    """A pre-norm layer of the Whisper encoder."""
    inside = self.self_attn_layer_norm(hidden_states)
    inside, _ = self.self_attn(hidden_states=inside, attention_mask=attention_mask, **kwargs)
    return _clamped(_feed_forward(self, hidden_states + _dropped(self, inside)))


def packed_encoder_layer(self, hidden_states, cu_seqlens, **kwargs):
    """A layer of an encoder of the Qwen omni family: packed, and without dropout."""
    inside = self.self_attn_layer_norm(hidden_states)
    hidden_states = hidden_states + self.self_attn(hidden_states=inside, cu_seqlens=cu_seqlens, **kwargs)
    inside = linear_gelu(self, self.fc1, self.activation_fn, self.final_layer_norm(hidden_states))
    return (_clamped(hidden_states + self.fc2(inside)),)


def _clamped(x: torch.Tensor) -> torch.Tensor:
    limit = torch.finfo(torch.float16).max - 1000
    return x.clamp(min=-limit, max=limit) if x.dtype == torch.float16 else x


def decoder_layer(
    self,
    hidden_states,
    attention_mask=None,
    encoder_hidden_states=None,
    encoder_attention_mask=None,
    past_key_values=None,
    use_cache=True,
    **kwargs,
):
    """A pre-norm layer of the Whisper decoder; its cache says by itself whether it is used."""
    kwargs[cache_name(self)] = past_key_values
    inside = self.self_attn_layer_norm(hidden_states)
    inside, _ = self.self_attn(inside, attention_mask=attention_mask, **kwargs)
    hidden_states = hidden_states + _dropped(self, inside)
    if encoder_hidden_states is not None:
        inside, sound = self.encoder_attn_layer_norm(hidden_states), encoder_hidden_states
        inside, _ = self.encoder_attn(inside, key_value_states=sound, attention_mask=encoder_attention_mask, **kwargs)
        hidden_states = hidden_states + _dropped(self, inside)
    return _feed_forward(self, hidden_states)


def _dropped(self, x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, p=self.dropout, training=self.training)


def _feed_forward(self, residual: torch.Tensor) -> torch.Tensor:
    inside = linear_gelu(self, self.fc1, self.activation_fn, self.final_layer_norm(residual))
    inside = F.dropout(inside, p=self.activation_dropout, training=self.training)
    return residual + _dropped(self, self.fc2(inside))


def check_rote(module: nn.Module, row, above) -> str:
    if module.pos_emb.inv_freq.device.type == "meta":
        return "the model has no values yet (device meta)"
    inv_freq = module.pos_emb.inv_freq.detach().float().cpu()
    options = rote_options(module)
    dim, theta = options["rotary_dim"], options["theta"]
    expected = theta ** -(torch.arange(0, dim, 2, device="cpu").float() / dim)
    if inv_freq.shape != expected.shape or not torch.allclose(inv_freq, expected, rtol=1e-2):
        return "the frequencies of its time embedding are not theta^(−2k / rotary_dim)"
    return ""


def rote_options(module: nn.Module) -> dict:
    rope, positions = module.config.rope_parameters, module.pos_emb
    config = positions.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "rotary_dim": int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        "theta": float(rope["rope_theta"]),
        "period": float(positions.max_seq_len_cached),
        "window_factor": 1.0,
        "frame_factor": 2 * math.pi,
        "seconds_per_frame": module.config.audio_frame_step * 4,
    }


def audio_features_with_rote(self, input_features, input_features_mask, input_ids, **kwargs):
    """Encoder, rotary time embedding and projector of Music Flamingo."""
    positions = self.pos_emb
    as_object = kwargs.get("return_dict", getattr(self.config, "return_dict", True))
    if not as_object or not bare(positions) or positions.inv_freq.dtype != torch.float32:
        count(self, "the frequencies are not float32, the time embedding has hooks, or a tuple is wanted")
        return original(self, input_features, input_features_mask, input_ids, **kwargs)
    kwargs["return_dict"] = True
    output = self.audio_tower(input_features, input_features_mask=input_features_mask, **kwargs)
    hidden = output.last_hidden_state
    frames = hidden.shape[1]
    _, lengths = self.audio_tower._get_feat_extract_output_lengths(input_features_mask.sum(-1).long())
    seconds = self._build_audio_timestamps(input_ids, lengths, frames).to(hidden.device)
    hidden = embed_time(self, hidden, seconds)
    embeds = self.multi_modal_projector(hidden)
    inside = torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None]
    output.pooler_output = embeds[inside.to(embeds.device)]
    return output


def embed_time(self, hidden: torch.Tensor, seconds: torch.Tensor) -> torch.Tensor:
    """Rows of [windows, frames, D] rotated by their time."""
    windows, frames, width = hidden.shape
    options = rote_options(self)
    window = (seconds[:, 0] / (options["seconds_per_frame"] * frames)).round().long()
    frame = torch.arange(frames, device=hidden.device)
    try:
        return rote_op(
            hidden.reshape(-1, width),
            window.repeat_interleave(frames),
            frame.repeat(windows),
            **options,
            frames_per_window=frames,
            impl=state(self).impl,
        ).view_as(hidden)
    except ValueError as refused:
        count(self, refused)
    cos, sin = self.pos_emb(seconds, seq_len=frames)
    return namespace(self.pos_emb).apply_rotary_time_emb(hidden, cos, sin)
