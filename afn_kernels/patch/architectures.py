"""What is replaced in which architecture, as data. Nothing here imports transformers: classes are known by name."""

from afn_kernels.patch.table import (
    ENCODER,
    ORDER,
    Replacement,
    attention,
    decoder,
    encoder,
    gated_mlp,
    loss,
    mlp,
    norm,
    packed_encoder,
)

NO_GELU = "its activation is SiLU without a gate"


def projector(name: str) -> Replacement:
    """The adaptor between an encoder and a decoder: Linear, GELU, Linear."""
    return mlp(f"{name}MultiModalProjector", first="linear_1", activation="act", last="linear_2")


def model(name: str, output: str = "", **options) -> Replacement:
    """The head of an audio-language model."""
    return loss(f"{name}ForConditionalGeneration", output or f"{name}CausalLMOutputWithPast", **options)


def without(type: str, op: str, why: str) -> Replacement:
    """A module for which no op fits."""
    return Replacement(type, without={op: why})


def gemma(name: str, *, cap: bool = False, **options) -> tuple[Replacement, ...]:
    """Norms that multiply by 1 + weight, and a GELU in the gate; ``cap`` where logits may be soft-capped."""
    return (
        norm(f"{name}RMSNorm", eps="eps", offset=1.0),
        gated_mlp(f"{name}MLP", op="geglu"),
        attention(f"{name}Attention", **options),
        loss(f"{name}ForCausalLM", **({"cap": "config.final_logit_softcapping"} if cap else {})),
    )


ARCHITECTURES: dict[str, tuple[Replacement, ...]] = {
    "Llama": decoder("Llama"),
    "Mistral": decoder("Mistral", window="config.sliding_window"),
    "Qwen2": decoder("Qwen2", window="sliding_window"),
    "Qwen3": decoder("Qwen3", window="sliding_window", qk_norm=True),
    "SmolLM3": decoder("SmolLM3", window="sliding_window", if_rope="use_rope"),
    "Granite": (
        norm("GraniteRMSNorm"),
        gated_mlp("GraniteMLP"),
        attention("GraniteAttention"),
        loss("GraniteForCausalLM", divisor="config.logits_scaling", mentions=("logits_scaling",)),
    ),
    "Phi-3": (
        norm("Phi3RMSNorm"),
        gated_mlp("Phi3MLP", gate="gate_up_proj", up="", activation="activation_fn"),
        attention("Phi3Attention", qkv="qkv_proj", window="config.sliding_window"),
        loss("Phi3ForCausalLM"),
    ),
    "Phi-4-multimodal": (
        norm("Phi4MultimodalRMSNorm"),
        gated_mlp("Phi4MultimodalMLP", gate="gate_up_proj", up="", activation="activation_fn"),
        attention("Phi4MultimodalAttention", qkv="qkv_proj", window="config.sliding_window"),
        gated_mlp(
            "Phi4MultimodalAudioMLP",
            gate="gate_up_proj",
            up="",
            gate_first=False,
            norm="layer_norm",
            dropout="dropout",
        ),
        without("Phi4MultimodalAudioAttention", "attention", "a bias by distance is added to its scores"),
        loss("Phi4MultimodalForCausalLM"),
    ),
    "Gemma": gemma("Gemma"),
    "Gemma 2": gemma("Gemma2", cap=True, window="sliding_window", softcap="attn_logit_softcapping"),
    "Gemma 3": (
        *gemma("Gemma3", cap=True, window="sliding_window", qk_norm=True),
        loss("Gemma3ForConditionalGeneration", "Gemma3CausalLMOutputWithPast"),
    ),
    "Whisper": encoder(
        "Whisper", cross=True, loss=model("Whisper", "Seq2SeqLMOutput", head="proj_out", style="whisper")
    ),
    "Voxtral": (*encoder("Voxtral"), projector("Voxtral"), model("Voxtral", "CausalLMOutputWithPast")),
    "Qwen2-Audio": encoder("Qwen2Audio", pools=True, loss=model("Qwen2Audio", style="qwen2_audio")),
    "AudioFlamingo3": (
        *encoder("AudioFlamingo3", cross=True, pools=True),
        projector("AudioFlamingo3"),
        model("AudioFlamingo3"),
    ),
    "MusicFlamingo": (
        projector("MusicFlamingo"),
        model("MusicFlamingo"),
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
    "GLM-ASR": (
        attention(
            "GlmAsrAttention", parameters=("hidden_states", "position_embeddings", "attention_mask"), counted=True
        ),
        mlp("GlmAsrMLP"),
        projector("GlmAsr"),
        model("GlmAsr"),
    ),
    "Qwen3-ASR": (*packed_encoder("Qwen3ASRAudio"), projector("Qwen3ASR"), model("Qwen3ASR")),
    "Qwen2.5-Omni thinker": (
        *packed_encoder("Qwen2_5OmniAudio"),
        norm("Qwen2_5OmniRMSNorm"),
        gated_mlp("Qwen2_5OmniMLP"),  # of the vision tower; the thinker's has the name of Qwen2's
        attention(
            "Qwen2_5OmniAttention",
            target="omni_attention",
            parameters=("hidden_states", "attention_mask", "position_ids", "past_key_values|cache"),
            window="sliding_window",
        ),
        loss("Qwen2_5OmniThinkerForConditionalGeneration", "MultimodalCausalLMOutputWithPast|CausalLMOutputWithPast"),
    ),
    "Qwen3-Omni thinker": (
        *packed_encoder("Qwen3OmniMoeAudio"),
        norm("Qwen3OmniMoeThinkerTextRMSNorm"),
        norm("Qwen3OmniMoeTextRMSNorm"),
        gated_mlp("Qwen3OmniMoeThinkerTextMLP"),
        without("Qwen3OmniMoeThinkerTextExperts", "swiglu", "its experts multiply groups of rows"),
        attention("Qwen3OmniMoeThinkerTextAttention", window="sliding_window", qk_norm=True),
        loss(
            "Qwen3OmniMoeThinkerForConditionalGeneration",
            "MultimodalMoeCausalLMOutputWithPast|MoeCausalLMOutputWithPast",
        ),
    ),
    "Granite Speech": (
        without("GraniteSpeechConformerAttention", "attention", "a bias by distance is added to its scores"),
        without("GraniteSpeechConformerFeedForward", "bias_gelu", NO_GELU),
        model("GraniteSpeech", style="kept", mentions=("shift_attention_mask",)),
    ),
    "Moonshine": (
        mlp("MoonshineEncoderMLP", activation="activation_fn"),
        gated_mlp("MoonshineDecoderMLP", gate="fc1", up="", down="fc2", activation="activation_fn", gate_first=False),
        attention(
            "MoonshineAttention",
            target="moonshine_attention",
            parameters=(*ORDER, "key_value_states"),
            interleaved=True,
        ),
        model("Moonshine", "Seq2SeqLMOutput", head="proj_out", style="given", mentions=("shift_labels",)),
    ),
    "Wav2Vec2": (
        Replacement(
            "Wav2Vec2Attention",
            ("attention",),
            "attention:cross_or_self_attention",
            needs=(*ENCODER, "dropout"),
            parameters=("hidden_states", "key_value_states", "attention_mask", "output_attentions"),
            options={"caller_without": "output_attentions"},
        ),
        mlp(
            "Wav2Vec2FeedForward",
            first="intermediate_dense",
            activation="intermediate_act_fn",
            last="output_dense",
            dropouts=("intermediate_dropout", "output_dropout"),
        ),
        without("Wav2Vec2ForCTC", "linear_cross_entropy", "its loss is CTC"),
    ),
    "every model": (
        Replacement(
            "LayerNorm",
            ("layer_norm",),
            "replacements:layer_norm",
            needs=("weight", "eps"),
            parameters=("input",),
        ),
        Replacement(
            "RMSNorm",
            ("rms_norm",),
            "replacements:rms_norm",
            needs=("weight", "eps"),
            parameters=("hidden_states|x",),
            options={"eps": "eps", "weight": "weight", "offset": 0.0},
        ),
    ),
}

ROWS: dict[str, Replacement] = {row.type: row for rows in ARCHITECTURES.values() for row in rows}
