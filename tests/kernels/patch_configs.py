"""Tiny configurations and inputs of the architectures that ``patch`` knows beside those of ``patch_models``."""

import torch
from torch import Tensor

MORE = {
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "phi4_multimodal": "Phi4MultimodalForCausalLM",
    "granite_speech": "GraniteSpeechForConditionalGeneration",
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration",
    "glmasr": "GlmAsrForConditionalGeneration",
    "qwen3_asr": "Qwen3ASRForConditionalGeneration",
    "moonshine": "MoonshineForConditionalGeneration",
    "wav2vec2": "Wav2Vec2ForCTC",
}
MEL, FRAMES, SOUND = 16, 48, 70  # mel bands, mel frames of a window, the audio token
LENGTHS = (FRAMES - 7, FRAMES)  # mel frames of each row
GRANITE = {
    "logits_scaling": 2.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.7,
    "embedding_multiplier": 1.5,
    "tie_word_embeddings": False,
}
M_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
PART = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
CHUNKED = {
    "num_mel_bins": MEL,
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 96,
    "output_dim": 64,
    "n_window": 8,
}
BY_100 = {"n_window": 50, "n_window_infer": 100, "downsample_hidden_size": 8}


def config(cls, name: str, text: dict):
    """One of ``MORE``; ``text`` is the configuration that all decoders share."""
    of_text = {**text, "head_dim": 16}
    if name in ("gemma2", "gemma3"):
        layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
        caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0} if name == "gemma2" else {}
        return cls(**of_text, **layers, **caps, query_pre_attn_scalar=24)
    if name == "phi3":
        return cls(**text, rope_parameters=PART, original_max_position_embeddings=512)
    if name == "granite":
        return cls(**text, **GRANITE)
    if name == "smollm3":
        return cls(**text, no_rope_layers=[1, 0])
    if name == "phi4_multimodal":
        ears = {"hidden_size": 64, "intermediate_size": 96, "num_blocks": 2, "num_attention_heads": 2}
        ears |= {"input_size": MEL, "nemo_conv_channels": 8, "bias_max_distance": 8, "chunk_size": 100}
        ears |= {"ext_pw_out_channel": 64, "depthwise_separable_out_channel": 64, "audio_token_id": SOUND}
        eyes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        eyes |= {"image_size": 28, "crop_size": 28, "image_token_id": 79}
        return cls(**text, rope_parameters=PART, audio_config=ears, vision_config=eyes)
    if name == "granite_speech":
        ears = {"input_dim": MEL, "num_layers": 2, "hidden_dim": 64, "num_heads": 2, "dim_head": 32, "output_dim": 8}
        ears |= {"context_size": 12, "max_pos_emb": 16, "dropout": 0.0, "conv_kernel_size": 3, "feedforward_mult": 2}
        bridge = {"model_type": "blip_2_qformer", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        bridge |= {"intermediate_size": 96, "encoder_hidden_size": 64, "vocab_size": 8}
        bridge |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return cls(
            text_config={"model_type": "granite", **text, **GRANITE},
            encoder_config=ears,
            projector_config=bridge,
            audio_token_index=SOUND,
            has_lora_adapter=False,
        )
    if name == "qwen2_5_omni":
        eyes = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
        ids = {"audio_token_index": SOUND, "image_token_index": 78, "video_token_index": 79}
        return cls(
            text_config={**text, "rope_parameters": M_ROPE, "layer_types": ["full_attention"] * 2},
            audio_config={**CHUNKED, "max_source_positions": FRAMES},
            vision_config={**eyes, "fullatt_block_indexes": [0]},
            audio_start_token_id=71,
            audio_end_token_id=72,
            vision_start_token_id=77,
            **ids,
        )
    if name == "qwen3_omni_moe":
        eyes = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
        # Every expert is used: which ones are would depend on the last bit of the router.
        experts = {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0]}
        ids = {"audio_token_id": SOUND, "image_token_id": 78, "video_token_id": 79}
        return cls(
            text_config={**of_text, **experts, "rope_parameters": M_ROPE},
            audio_config={**CHUNKED, **BY_100, "max_source_positions": FRAMES},
            vision_config={**eyes, "num_position_embeddings": 16, "deepstack_visual_indexes": []},
            audio_start_token_id=71,
            vision_start_token_id=77,
            **ids,
        )
    if name == "glmasr":
        ears = {"num_mel_bins": MEL, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
        ears |= {"num_attention_heads": 2, "max_position_embeddings": FRAMES, "rope_parameters": PART}
        return cls(
            audio_config={"model_type": "glmasr_encoder", **ears},
            text_config={"model_type": "llama", **of_text},
            audio_token_id=SOUND,
        )
    if name == "qwen3_asr":
        return cls(
            audio_config={
                "model_type": "qwen3_asr_encoder",
                **CHUNKED,
                **BY_100,
            },
            text_config={"model_type": "qwen3", **of_text},
            audio_token_id=SOUND,
            timestamp_token_id=73,
            pad_token_id=0,
            eos_token_id=2,
        )
    if name == "moonshine":
        sizes = {"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 2}
        sizes |= {"decoder_num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 96}
        ids = {key: text[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
        return cls(**sizes, **ids, rope_parameters=PART)
    off = (
        "attention_dropout",
        "hidden_dropout",
        "feat_proj_dropout",
        "final_dropout",
        "activation_dropout",
        "layerdrop",
    )
    sizes = {"conv_dim": (32, 32), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
    sizes |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "hidden_size": 64}
    sizes |= {"intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 80}
    ways = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "apply_spec_augment": False}
    return cls(**sizes, **ways, **dict.fromkeys(off, 0.0), pad_token_id=0)


def sounds(name: str, row: int) -> int:
    """Audio tokens that a row of the batch has."""
    if name in ("phi4_multimodal", "granite_speech"):
        return 6 - (row == 0)
    if name == "qwen2_5_omni":
        return ((LENGTHS[row] - 1) // 2 - 1) // 2 + 1
    if name == "glmasr":
        return ((LENGTHS[row] - 1) // 2 - 3) // 4 + 1
    return 13 - (row == 0)  # of Qwen3's chunks of 100 frames


def audio(name: str, generator: torch.Generator) -> dict[str, Tensor]:
    """What a batch of two rows has beside its tokens."""
    frames = 100 if name.startswith("qwen3") else FRAMES
    heard = (torch.arange(frames) < frames + torch.tensor([-7, 0])[:, None]).long()
    if name == "phi4_multimodal":
        features = torch.randn(2, FRAMES, MEL, generator=generator)
        return {"audio_input_features": features, "audio_embed_sizes": torch.tensor([5, 6])}
    if name == "granite_speech":
        kept = torch.arange(6) < torch.tensor([5, 6])[:, None]
        return {"input_features": torch.randn(2, 30, MEL, generator=generator), "input_features_mask": kept}
    key = "feature_attention_mask" if "omni" in name else "input_features_mask"
    return {"input_features": torch.randn(2, MEL, frames, generator=generator), key: heard}


def waveform(name: str, generator: torch.Generator) -> dict[str, Tensor]:
    """A batch of two rows of sound, the first of them shorter."""
    samples = 6400 if name == "moonshine" else 400
    mask = (torch.arange(samples) < torch.tensor([samples * 3 // 4, samples])[:, None]).long()
    return {"input_values": torch.randn(2, samples, generator=generator), "attention_mask": mask}
