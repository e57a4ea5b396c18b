"""config.json of a model folder, read into ``ModelConfig`` and written from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afn_model.config import AudioConfig, ModelConfig, RoteConfig, TextConfig
from afn_model.files import read_json


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a checkpoint folder, any layout of ``afn_model.weights.checkpoint``.

    Raises:
        ValueError: no config.json, unreadable JSON, a missing key, or a model this code does not compute.
    """
    raw = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if "text_config" not in raw and (folder / "llm" / "config.json").exists():
        raw |= {"text_config": read_json(folder / "llm" / "config.json")}
    if "audio_config" not in raw and (folder / "sound_tower" / "config.json").exists():
        raw |= {"audio_config": read_json(folder / "sound_tower" / "config.json")}
    if not raw:
        raise ValueError(f"{folder}: no config.json")
    generation = folder / "generation_config.json"
    if generation.exists():
        raw |= {k: v for k, v in read_json(generation).items() if k in ("eos_token_id", "repetition_penalty")}
    try:
        return from_json(raw)
    except (KeyError, ValueError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{folder / 'config.json'}: {what}") from error


def from_json(raw: dict[str, Any]) -> ModelConfig:
    """A ModelConfig from config.json's contents; KeyError or ValueError when something is missing or unsupported."""
    audio, text = raw["audio_config"], raw["text_config"]
    model_type = raw.get("model_type", "musicflamingo")
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise ValueError(f"rope scaling {scaling} is not computed by this model")
    if text.get("use_sliding_window") or text.get("tie_word_embeddings"):
        raise ValueError("sliding-window attention and tied embeddings are not computed by this model")
    if text.get("head_dim", None) not in (None, text["hidden_size"] // text["num_attention_heads"]):
        raise ValueError(f"head_dim {text['head_dim']} is not hidden_size / num_attention_heads")

    stop = raw.get("eos_token_id", text.get("eos_token_id"))
    stop = (stop,) if isinstance(stop, int) else tuple(stop or ())
    return ModelConfig(
        audio=AudioConfig(
            n_mels=audio.get("num_mel_bins", 128),
            width=either(audio, "hidden_size", "d_model"),
            layers=either(audio, "num_hidden_layers", "encoder_layers"),
            heads=either(audio, "num_attention_heads", "encoder_attention_heads"),
            ffn=either(audio, "intermediate_size", "encoder_ffn_dim"),
            max_positions=audio.get("max_source_positions", 1500),
        ),
        text=TextConfig(
            vocab_size=text["vocab_size"],
            width=text["hidden_size"],
            layers=text["num_hidden_layers"],
            heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"],
            ffn=text["intermediate_size"],
            rope_theta=scaling.get("rope_theta", text.get("rope_theta", 10_000.0)),
            max_positions=text["max_position_embeddings"],
            rms_eps=text.get("rms_norm_eps", 1e-6),
        ),
        rote=rote_from_json(raw, model_type),
        audio_token_id=raw.get("audio_token_id", raw.get("sound_token_id", 151_669)),
        audio_bos_token_id=raw.get("audio_bos_token_id"),
        audio_eos_token_id=raw.get("audio_eos_token_id"),
        stop_token_ids=stop,
        repetition_penalty=raw.get("repetition_penalty", 1.2),
    )


def rote_from_json(raw: dict[str, Any], model_type: str) -> RoteConfig:
    """AF3 has no RoTE; every other member of the family does, so its absence in any other model is an error."""
    if model_type == "audioflamingo3":
        return RoteConfig("none")
    rope = raw.get("rope_parameters") or {}
    theta = float(rope.get("rope_theta", 1200.0))
    fraction = rope.get("partial_rotary_factor", 0.2)
    return RoteConfig(**{"theta": theta, "period": theta, "fraction": fraction, **(raw.get("rote") or {})})


def to_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json's contents: the released integration's keys, plus ``rote`` for what it has no key for."""
    has_rote = config.rote.reading != "none"
    stop = list(config.stop_token_ids)
    raw: dict[str, Any] = {
        "model_type": "musicflamingo" if has_rote else "audioflamingo3",
        "architectures": [f"{'MusicFlamingo' if has_rote else 'AudioFlamingo3'}ForConditionalGeneration"],
        "dtype": dtype,
        "audio_config": {
            "model_type": "audioflamingo3_encoder",
            "num_mel_bins": config.audio.n_mels,
            "hidden_size": config.audio.width,
            "num_hidden_layers": config.audio.layers,
            "num_attention_heads": config.audio.heads,
            "intermediate_size": config.audio.ffn,
            "max_source_positions": config.audio.max_positions,
            "activation_function": "gelu",
        },
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": config.text.vocab_size,
            "hidden_size": config.text.width,
            "num_hidden_layers": config.text.layers,
            "num_attention_heads": config.text.heads,
            "num_key_value_heads": config.text.kv_heads,
            "intermediate_size": config.text.ffn,
            "max_position_embeddings": config.text.max_positions,
            "rms_norm_eps": config.text.rms_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.text.rope_theta},
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "eos_token_id": stop,
        },
        "audio_token_id": config.audio_token_id,
        "projector_hidden_act": "gelu",
        "projector_bias": True,
        "eos_token_id": stop,
    }
    if has_rote:
        raw |= {
            "audio_bos_token_id": config.audio_bos_token_id,
            "audio_eos_token_id": config.audio_eos_token_id,
            "audio_frame_step": 0.01,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": config.rote.theta,
                "partial_rotary_factor": config.rote.fraction,
            },
        }
        defaults = RoteConfig(period=config.rote.theta)
        keys = ("reading", "period", "window_factor", "frame_factor", "accurate", "text_step", "clock")
        changed = {key: getattr(config.rote, key) for key in keys}
        changed = {key: value for key, value in changed.items() if value != getattr(defaults, key)}
        raw |= {"rote": changed} if changed else {}
    return raw


def either(table: dict[str, Any], name: str, older: str) -> Any:
    """The value under the current name or, failing that, the older one; KeyError with the current name."""
    return table[older] if name not in table and older in table else table[name]
