"""What is replaced in which architecture, as data. Nothing here imports transformers: classes are known by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field

OPS = (
    "rms_norm",
    "layer_norm",
    "swiglu",
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
        parameters: the parameters that the original forward must have, first ones first, without ``self``. A version
            of transformers with others is another forward, and is left alone.
        method: the method that is replaced.
        under: the module counts only inside one whose class name begins so; empty: anywhere.
        options: what the replacement is told.
    """

    type: str
    ops: tuple[str, ...]
    target: str
    needs: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    method: str = "forward"
    under: tuple[str, ...] = ()
    options: Mapping = field(default_factory=dict)


def decoder(name: str, *, qk_norm: bool = False, window: str = "") -> tuple[Replacement, ...]:
    """Norms, MLP, attention and loss of a decoder of the Llama family."""
    return (
        Replacement(
            f"{name}RMSNorm",
            ("rms_norm",),
            "replacements:rms_norm",
            needs=("weight", "variance_epsilon"),
            parameters=("hidden_states",),
            options={"eps": "variance_epsilon"},
        ),
        Replacement(
            f"{name}MLP",
            ("swiglu",),
            "replacements:swiglu",
            needs=("gate_proj", "up_proj", "down_proj", "act_fn"),
            parameters=("x",),
            options={"gate": "gate_proj", "up": "up_proj", "down": "down_proj", "activation": "act_fn"},
        ),
        Replacement(
            f"{name}Attention",
            ("rotary", "attention"),
            "attention:decoder_attention",
            needs=(
                *("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling", "layer_idx", "is_causal"),
                *(("q_norm", "k_norm") if qk_norm else ()),
            ),
            parameters=("hidden_states", "position_embeddings", "attention_mask", "past_key_values"),
            options={"qk_norm": qk_norm, "window": window},
        ),
        Replacement(
            f"{name}ForCausalLM",
            ("linear_cross_entropy",),
            "loss:causal_lm",
            needs=("model", "lm_head.weight", "loss_function"),
            options={"head": "lm_head", "output": "CausalLMOutputWithPast"},
        ),
    )


def encoder(
    name: str, *, cross: bool = False, pools: bool = False, loss: Replacement | None = None
) -> tuple[Replacement, ...]:
    """Norms, feed-forward block, attention and pooling of an encoder of the Whisper family, and its model's loss.

    Args:
        name: how the names of its classes begin.
        cross: its attention is one class for encoder and decoder, with cross-attention and a cache.
        pools: it ends with a mean over two frames before the last norm.
        loss: the row of the model that it belongs to.
    """
    of_decoder = ("hidden_states", "key_value_states", "past_key_values", "attention_mask")
    feed_forward = {
        "ops": ("bias_gelu",),
        "needs": (
            *("self_attn", "self_attn_layer_norm", "final_layer_norm", "fc1", "fc2"),
            *("activation_fn", "dropout", "activation_dropout"),
        ),
        "options": {"linear": "fc1", "activation": "activation_fn"},
    }
    rows = (
        Replacement(
            f"{name}Attention",
            ("attention",),
            "attention:encoder_attention" if cross else "attention:self_attention",
            needs=("q_proj", "k_proj", "v_proj", "out_proj", "head_dim", "num_heads", "scaling", "is_causal"),
            parameters=of_decoder if cross else ("hidden_states", "attention_mask", "output_attentions"),
        ),
        Replacement(
            f"{name}EncoderLayer",
            target="replacements:encoder_layer",
            parameters=("hidden_states", "attention_mask"),
            **feed_forward,
        ),
        Replacement(
            f"{name}DecoderLayer",
            target="replacements:decoder_layer",
            parameters=(
                *("hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask"),
                *("past_key_values", "use_cache"),
            ),
            **feed_forward,
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


def projector(name: str) -> Replacement:
    """The adaptor between an encoder and a decoder: Linear, GELU, Linear."""
    return Replacement(
        f"{name}MultiModalProjector",
        ("bias_gelu",),
        "replacements:projector",
        needs=("linear_1", "act", "linear_2"),
        parameters=("audio_features",),
        options={"linear": "linear_1", "activation": "act"},
    )


def loss(name: str, output: str, **options) -> Replacement:
    """The head of an audio-language model."""
    return Replacement(
        f"{name}ForConditionalGeneration",
        ("linear_cross_entropy",),
        "loss:causal_lm",
        needs=("model", f"{options.get('head', 'lm_head')}.weight", "loss_function"),
        options={"head": "lm_head", "output": output, **options},
    )


AUDIO = ("Whisper", "Voxtral", "Qwen2Audio", "AudioFlamingo3", "MusicFlamingo")

ARCHITECTURES: dict[str, tuple[Replacement, ...]] = {
    "Llama": decoder("Llama"),
    "Mistral": decoder("Mistral", window="config.sliding_window"),
    "Qwen2": decoder("Qwen2", window="sliding_window"),
    "Qwen3": decoder("Qwen3", window="sliding_window", qk_norm=True),
    "Whisper": encoder(
        "Whisper", cross=True, loss=loss("Whisper", "Seq2SeqLMOutput", head="proj_out", style="whisper")
    ),
    "Voxtral": (*encoder("Voxtral"), projector("Voxtral"), loss("Voxtral", "CausalLMOutputWithPast")),
    "Qwen2-Audio": encoder(
        "Qwen2Audio", pools=True, loss=loss("Qwen2Audio", "Qwen2AudioCausalLMOutputWithPast", style="qwen2_audio")
    ),
    "AudioFlamingo3": (
        *encoder("AudioFlamingo3", cross=True, pools=True),
        projector("AudioFlamingo3"),
        loss("AudioFlamingo3", "AudioFlamingo3CausalLMOutputWithPast"),
    ),
    "MusicFlamingo": (
        projector("MusicFlamingo"),
        loss("MusicFlamingo", "MusicFlamingoCausalLMOutputWithPast"),
        Replacement(
            "MusicFlamingoModel",
            ("rote",),
            "replacements:audio_features_with_rote",
            needs=(
                *("audio_tower", "multi_modal_projector", "pos_emb.inv_freq", "_build_audio_timestamps"),
                *("config.audio_frame_step", "config.rope_parameters"),
            ),
            parameters=("input_features", "input_features_mask", "input_ids"),
            method="get_audio_features",
        ),
    ),
    "every encoder": (
        Replacement(
            "LayerNorm",
            ("layer_norm",),
            "replacements:layer_norm",
            needs=("weight", "bias", "eps"),
            parameters=("input",),
            under=AUDIO,
        ),
    ),
}

ROWS: dict[str, Replacement] = {row.type: row for rows in ARCHITECTURES.values() for row in rows}

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
    "cpu": {op: _NO_FASTER for op in OPS if op != "linear_cross_entropy"},
}
