"""config.json of a model folder, read into ``ModelConfig`` and written from it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from afn_model.checks import is_whole, number, shown, whole
from afn_model.config import LARGEST, AudioConfig, ModelConfig, RoteConfig, TextConfig
from afn_model.files import read_json

GELU, SILU = ("gelu",), ("silu", "swish")
# Fields that change what a model computes and have one value here, by the object they stand in: others are refused.
# Dropout is not among them: it is for training, and this project trains without.
FIXED: dict[str, dict[str, tuple]] = {
    "": {
        "projector_hidden_act": GELU,
        "projector_bias": (True,),
        "audio_frame_step": (0.01,),
        "tie_word_embeddings": (False,),
        "quantization_config": (),
    },
    "audio_config": {"activation_function": GELU, "scale_embedding": (False,), "quantization_config": ()},
    "text_config": {
        "model_type": ("qwen2",),
        "hidden_act": SILU,
        "use_sliding_window": (False,),
        "tie_word_embeddings": (False,),
        "quantization_config": (),
    },
}
FULL_ATTENTION = {repr("full_attention")}
ROPE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


class JsonObject:
    """An object of a config.json, whose values are asked for by name and type; null is as good as absent.

    Args:
        value: what should be an object.
        name: of it, "" for the whole file.

    Raises:
        ValueError: no object; from the methods, a value that is missing or none of its type, by its name.
    """

    def __init__(self, value: Any, name: str = ""):
        if not isinstance(value, dict):
            raise ValueError(f"{name or 'the file'} must be an object, got {shown(value)}")
        self.value, self.name = value, name

    def path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def get(self, *keys: str) -> Any:
        """The first of the keys that is there, None without any."""
        return next((self.value[key] for key in keys if self.value.get(key) is not None), None)

    def object(self, key: str) -> JsonObject:
        """The object of that name, empty where it is absent."""
        value = self.get(key)
        return JsonObject({} if value is None else value, self.path(key))

    def whole(self, *keys: str, default: int | None = None, least: int = 1, most: int = LARGEST) -> int:
        value = self.get(*keys)
        if value is None and default is None:
            raise ValueError(f"{self.path(keys[0])} is missing")
        return whole(default if value is None else value, self.path(keys[0]), least, most)

    def number(self, *keys: str, default: float) -> float:
        value = self.get(*keys)
        return number(default if value is None else value, self.path(keys[0]), above=0)

    def token(self, *keys: str) -> int | None:
        return None if self.get(*keys) is None else self.whole(*keys, least=0, most=2**31 - 1)

    def only(self, allowed: dict[str, tuple]) -> None:
        """ValueError where a key has another value than those that this code computes."""
        for key, values in allowed.items():
            value = self.get(key)
            if value is not None and value not in values:
                expected = " or ".join(map(repr, values)) or "none"
                raise ValueError(f"{self.path(key)} is {shown(value)}; this model computes {expected}")

    def keys_among(self, names: tuple[str, ...]) -> None:
        """ValueError where another key is there."""
        unknown = [key for key in self.value if key not in names]
        if unknown:
            raise ValueError(f"{self.path(unknown[0])} is not computed by this model")


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a checkpoint folder, any layout of ``afn_model.weights.checkpoint``.

    Of generation_config.json, which holds how its authors like to sample, stop tokens and repetition penalty are read.

    Raises:
        ValueError: one line with the file and what is wrong: no config.json, unreadable JSON, a missing key, a value
            that is no number of its range, or a field that makes it a model this code does not compute.
    """
    file = folder / "config.json"
    raw = read_json(file) if file.exists() else {}
    for key, part in (("text_config", "llm"), ("audio_config", "sound_tower")):
        if key not in raw and (folder / part / "config.json").exists():
            raw[key] = read_json(folder / part / "config.json")
    if not raw:
        raise ValueError(f"{folder}: no config.json")
    if raw.get("model_type") == "whisper":
        why = "an encoder with a decoder of its own and no language model: afn transcribe, afn ask and Session take it"
        raise ValueError(f"{file}: {why}")
    generation = folder / "generation_config.json"
    if generation.exists():
        said = read_json(generation)
        raw |= {key: said[key] for key in ("eos_token_id", "repetition_penalty") if said.get(key) is not None}
    try:
        return from_json(raw)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def from_json(raw: dict[str, Any]) -> ModelConfig:
    """A ModelConfig from config.json's contents; ValueError when something is missing, no number, or unsupported."""
    top = JsonObject(raw)
    for key in ("audio_config", "text_config"):
        if key not in raw:
            raise ValueError(f"{key} is missing")
    audio, text = JsonObject(raw["audio_config"], "audio_config"), JsonObject(raw["text_config"], "text_config")
    for part in (top, audio, text):
        part.only(FIXED[part.name])
    layer_types = text.get("layer_types")
    if layer_types is not None and (not isinstance(layer_types, list) or set(map(repr, layer_types)) - FULL_ATTENTION):
        raise ValueError(f"text_config.layer_types: this model computes full attention only, not {shown(layer_types)}")
    theta = text.number("rope_theta", default=10_000.0)
    for key in ("rope_scaling", "rope_parameters"):
        rope = plain_rope(text.object(key), factors=(1,))
        theta = rope.number("rope_theta", default=theta)
    width, heads = text.whole("hidden_size"), text.whole("num_attention_heads")
    if text.whole("head_dim", default=max(width // heads, 1)) != width // heads:
        raise ValueError(f"text_config.head_dim {text.get('head_dim')} is not hidden_size / num_attention_heads")
    audio_token = top.token("audio_token_id", "sound_token_id")
    return ModelConfig(
        audio=AudioConfig(
            n_mels=audio.whole("num_mel_bins", default=128),
            width=audio.whole("hidden_size", "d_model"),
            layers=audio.whole("num_hidden_layers", "encoder_layers"),
            heads=audio.whole("num_attention_heads", "encoder_attention_heads"),
            ffn=audio.whole("intermediate_size", "encoder_ffn_dim"),
            max_positions=audio.whole("max_source_positions", default=1500),
        ),
        text=TextConfig(
            vocab_size=text.whole("vocab_size"),
            width=width,
            layers=text.whole("num_hidden_layers"),
            heads=heads,
            kv_heads=text.whole("num_key_value_heads", default=heads),
            ffn=text.whole("intermediate_size"),
            rope_theta=theta,
            max_positions=text.whole("max_position_embeddings", most=2**31 - 1),
            rms_eps=text.number("rms_norm_eps", default=1e-6),
        ),
        rote=rote_from_json(top),
        audio_token_id=151_669 if audio_token is None else audio_token,
        audio_bos_token_id=top.token("audio_bos_token_id"),
        audio_eos_token_id=top.token("audio_eos_token_id"),
        stop_token_ids=stop_tokens(top if top.get("eos_token_id") is not None else text),
        repetition_penalty=top.number("repetition_penalty", default=1.2),
    )


def stop_tokens(part: JsonObject) -> tuple[int, ...]:
    value = part.get("eos_token_id")
    several = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(whole(token, part.path("eos_token_id")) for token in several)


def plain_rope(rope: JsonObject, factors: tuple[float, ...] = ()) -> JsonObject:
    """The rotary embedding's parameters, where they ask for no scaling; ``factors`` are the parts that may rotate."""
    kind = rope.get("rope_type", "type")
    if kind not in (None, "default"):
        raise ValueError(f"{rope.name}: rope scaling {shown(kind)} is not computed by this model")
    rope.keys_among(ROPE)
    if factors:
        rope.only({"partial_rotary_factor": factors})
    return rope


def rote_from_json(top: JsonObject) -> RoteConfig:
    """AF3 has no RoTE; every other member of the family does, so its absence in any other model is an error."""
    if top.get("model_type") == "audioflamingo3":
        return RoteConfig("none")
    rope = plain_rope(top.object("rope_parameters"))
    theta = rope.number("rope_theta", default=1200.0)
    fraction = rope.number("partial_rotary_factor", default=0.2)
    own = top.object("rote")
    own.keys_among(tuple(item.name for item in fields(RoteConfig)))
    return RoteConfig(**{"theta": theta, "period": theta, "fraction": fraction, **own.value})


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


def resolve_tokens(config: ModelConfig, folder: Path) -> ModelConfig:
    """The configuration with token ids looked up by string in the folder's tokenizer, where it has one.

    Raises:
        ValueError: the tokenizer has more tokens than the model, or lacks the audio placeholder.
    """
    path = next((p for p in (folder / "tokenizer.json", folder / "llm" / "tokenizer.json") if p.exists()), None)
    if path is None:
        return config
    ids = token_ids(path)
    if "<sound>" not in ids:
        raise ValueError(f"{path}: the tokenizer has no <sound> token")
    if max(ids.values()) >= config.text.vocab_size:
        text = f"{max(ids.values()) + 1} tokens but the model's vocabulary is {config.text.vocab_size}"
        raise ValueError(f"{path}: wrong vocabulary: the tokenizer has {text}")
    stop = tuple(ids[token] for token in ("<|im_end|>", "<|endoftext|>") if token in ids)
    return replace(
        config,
        audio_token_id=ids["<sound>"],
        audio_bos_token_id=ids.get("<|sound_bos|>"),
        audio_eos_token_id=ids.get("<|sound_eos|>"),
        stop_token_ids=stop or config.stop_token_ids,
    )


def token_ids(path: Path) -> dict[str, int]:
    """Every token of a tokenizer.json with its id.

    Raises:
        ValueError: no tokenizer.json, or one whose vocabulary is not by name, as a Unigram model's is.
    """
    raw = read_json(path)
    model, added = raw.get("model"), raw.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict) or not isinstance(added, list | None):
        kind = model.get("type") if isinstance(model, dict) else None
        raise ValueError(f"{path}: model {shown(kind)} has no vocabulary of names and ids; BPE is expected")
    ids = dict(vocabulary)
    for token in added or []:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise ValueError(f"{path}: {shown(token)} is no added token")
        ids[token["content"]] = token.get("id")
    wrong = next((token for token, number in ids.items() if not is_whole(number) or number < 0), None)
    if wrong is not None:
        raise ValueError(f"{path}: token {shown(wrong)} has the id {shown(ids[wrong])}")
    return ids
