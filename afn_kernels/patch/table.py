"""How a replacement is described: one row for a type of module, and what makes the rows of a family."""

from collections.abc import Mapping
from dataclasses import dataclass, field

OPS = (
    "rms_norm",
    "layer_norm",
    "swiglu",
    "geglu",
    "bias_gelu",
    "rotary",
    "attention",
    "pool_norm",
    "rote",
    "linear_cross_entropy",
)


@dataclass(frozen=True)
class Replacement:
    """One type of module and what its forward becomes.

    Args:
        type: name of the class.
        ops: the ops that the replacement calls.
        target: ``"module:attribute"`` of the replacement within ``afn_kernels.patch``.
        needs: attributes that the replacement reads; dotted ones are followed.
        parameters: the parameters that the original forward must have, first ones first, without ``self``; ``"a|b"``
            is one that is called a or b. A version of transformers with others is another forward, and is left alone.
        mentions: names that the code of the original forward must contain, where its parameters do not tell versions
            apart.
        method: the method that is replaced.
        options: what the replacement is told.
        without: ops that one might expect here, and why they do not fit.
    """

    type: str
    ops: tuple[str, ...] = ()
    target: str = ""
    needs: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    mentions: tuple[str, ...] = ()
    method: str = "forward"
    options: Mapping = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)


def norm(
    type: str, *, eps: str = "variance_epsilon", weight: str = "weight", offset: float | None = None
) -> Replacement:
    """An RMSNorm: x / rms(x) · weight.

    Args:
        type: name of the class.
        eps, weight: names of its attributes.
        offset: what is added to the weight before it multiplies, in float32: 1 in Gemma. None rounds before the weight
            multiplies, as Llama does.
    """
    return Replacement(
        type,
        ("rms_norm",),
        "replacements:rms_norm",
        needs=(weight, eps),
        parameters=("hidden_states|x|input",),
        options={"eps": eps, "weight": weight, "offset": offset},
    )


def gated_mlp(
    type: str,
    *,
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    activation: str = "act_fn",
    gate_first: bool = True,
    norm: str = "",
    dropout: str = "",
    op: str = "swiglu",
) -> Replacement:
    """A gated MLP: down(act(gate(x)) · up(x)).

    Args:
        type: name of the class.
        op: "swiglu" where act is SiLU, "geglu" where it is a GELU.
        gate, up, down, activation: names of its modules. An empty ``up`` means that ``gate`` gives both, halves of one
            projection.
        gate_first: whether the gate is the first of these halves.
        norm: a norm that comes first.
        dropout: a dropout after the product, and after ``down``.
    """
    names = {"gate": gate, "up": up, "down": down, "activation": activation, "before": norm, "dropout": dropout}
    return Replacement(
        type,
        (op,),
        "replacements:gated_mlp",
        needs=tuple(filter(None, names.values())),
        parameters=("x|hidden_states|hidden_state",),
        options={**names, "gate_first": gate_first},
    )


def mlp(
    type: str, *, first: str = "fc1", activation: str = "act_fn", last: str = "fc2", dropouts: tuple[str, ...] = ()
) -> Replacement:
    """An MLP: last(gelu(first(x))).

    Args:
        type: name of the class.
        first, activation, last: names of its modules; ``first`` has a bias, which the op adds.
        dropouts: those after the activation and after ``last``, where there are any.
    """
    return Replacement(
        type,
        ("bias_gelu",),
        "replacements:mlp",
        needs=(first, activation, last, *dropouts),
        parameters=("hidden_states|audio_features|x",),
        options={"linear": first, "activation": activation, "last": last, "dropouts": dropouts},
    )


def loss(type: str, output: str = "CausalLMOutputWithPast", **options) -> Replacement:
    """The head of a language model, whose labels are next tokens.

    Args:
        type: name of the class.
        output: name of the class of its outputs, in the same file.
        **options: ``head``, where it is not ``lm_head``; ``style`` of its labels and ``mentions``, see ``loss.py``;
            ``divisor``, the attribute by which its logits are divided; ``cap``, that of their soft cap.
    """
    return Replacement(
        type,
        ("linear_cross_entropy",),
        "loss:causal_lm",
        needs=("model", f"{options.get('head', 'lm_head')}.weight", "loss_function"),
        mentions=options.pop("mentions", ()),
        options={"head": "lm_head", "output": output, **options},
    )


ORDER = ("hidden_states", "position_embeddings", "attention_mask", "past_key_values|cache")


def attention(
    type: str, *, parameters: tuple[str, ...] = ORDER, target: str = "decoder_attention", **options
) -> Replacement:
    """Self-attention with rotary positions, as the Llama family has it.

    Args:
        type: name of the class.
        parameters, target: of another order of arguments, and the replacement that takes them in it.
        **options: ``qk_norm``: queries and keys are normalised; ``window`` and ``softcap``: attributes that hold the
            sliding window and the soft cap of scores; ``qkv``: the one projection that gives all three; ``if_rope``:
            the attribute that says whether this layer rotates at all; ``counted``: the forward is not told positions,
            they are 0, 1, 2, ...; ``interleaved``: pairs of features that turn are neighbours.
    """
    qk_norm, qkv = options.get("qk_norm", False), options.get("qkv", "")
    return Replacement(
        type,
        ("rotary", "attention"),
        f"attention:{target}",
        needs=(
            *((qkv,) if qkv else ("q_proj", "k_proj", "v_proj")),
            *("o_proj", "head_dim", "scaling", "layer_idx", "is_causal"),
            *(("q_norm", "k_norm") if qk_norm else ()),
        ),
        parameters=parameters,
        options=options,
    )


def decoder(name: str, **options) -> tuple[Replacement, ...]:
    """Norms, MLP, attention and loss of a decoder of the Llama family; ``options`` are those of its attention."""
    return (
        norm(f"{name}RMSNorm"),
        gated_mlp(f"{name}MLP"),
        attention(f"{name}Attention", **options),
        loss(f"{name}ForCausalLM"),
    )


FEED_FORWARD = {
    "ops": ("bias_gelu",),
    "needs": (
        *("self_attn", "self_attn_layer_norm", "final_layer_norm", "fc1", "fc2"),
        *("activation_fn", "dropout", "activation_dropout"),
    ),
    "options": {"linear": "fc1", "activation": "activation_fn"},
}
ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj", "head_dim", "num_heads", "scaling", "is_causal")


def encoder(
    name: str, *, cross: bool = False, pools: bool = False, loss: Replacement | None = None
) -> tuple[Replacement, ...]:
    """Feed-forward block, attention and pooling of an encoder of the Whisper family, and its model's loss.

    Args:
        name: how the names of its classes begin.
        cross: its attention is one class for encoder and decoder, with cross-attention and a cache.
        pools: it ends with a mean over two frames before the last norm.
        loss: the row of the model that it belongs to.
    """
    of_decoder = ("hidden_states", "key_value_states", "past_key_values|cache", "attention_mask")
    rows = (
        Replacement(
            f"{name}Attention",
            ("attention",),
            "attention:encoder_attention" if cross else "attention:self_attention",
            needs=ENCODER,
            parameters=of_decoder if cross else ("hidden_states", "attention_mask", "output_attentions"),
            options={"scale_queries": True},
        ),
        Replacement(
            f"{name}EncoderLayer",
            target="replacements:encoder_layer",
            parameters=("hidden_states", "attention_mask"),
            **FEED_FORWARD,
        ),
        Replacement(
            f"{name}DecoderLayer",
            target="replacements:decoder_layer",
            parameters=(
                *("hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask"),
                *("past_key_values|cache", "use_cache"),
            ),
            **FEED_FORWARD,
        ),
    )
    if pools:
        rows += (
            Replacement(
                f"{name}Encoder",
                ("pool_norm",),
                "replacements:pool_norm",
                needs=("avg_pooler", "layer_norm.weight", "layer_norm.bias"),
                options={"pool": "avg_pooler", "norm": "layer_norm"},
            ),
        )
    return rows if loss is None else (*rows, loss)


def packed_encoder(name: str) -> tuple[Replacement, ...]:
    """Attention and feed-forward block of an encoder that packs its chunks, with ``cu_seqlens``, as Qwen's do."""
    return (
        Replacement(
            f"{name}Attention",
            ("attention",),
            "attention:packed_attention",
            needs=(*ENCODER, "attention_dropout"),
            parameters=("hidden_states", "cu_seqlens"),
        ),
        Replacement(
            f"{name}EncoderLayer",
            target="replacements:packed_encoder_layer",
            parameters=("hidden_states", "cu_seqlens"),
            **FEED_FORWARD,
        ),
    )


# What looks like something an op could do, when its class is in no row: by the end of its name, or by what it has.
LOOKS = {
    "a norm": (("Norm",), ("variance_epsilon",)),
    "an MLP": (("MLP", "FeedForward"), ("gate_proj", "up_proj")),
    "attention": (("Attention",), ("q_proj", "k_proj", "v_proj")),
}

# Why impl="auto" leaves an op alone on a device, with the measurement; an op that is not here is replaced.
UNMEASURED = "not yet timed on a GPU"
_NO_FASTER = "no faster on a CPU (bench/results/cpu/patch.jsonl)"
LEFT_ALONE: dict[str, dict[str, str]] = {
    "cuda": {},
    # The loss skips rows without a label, everything else is the same arithmetic in the same number of passes.
    "cpu": {
        **{op: _NO_FASTER for op in OPS if op != "linear_cross_entropy"},
        "geglu": "nobody timed it on cpu",
    },
}
