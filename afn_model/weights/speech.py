"""The encoder with its text decoder as a folder: Whisper's layout of transformers, read and written.

An encoder of such a folder goes into a model of AF-Next, and that of a model of AF-Next into such a folder, unchanged.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from afn_model.config import AudioConfig, ModelConfig, SpeechConfig
from afn_model.files import PARTIAL, model_folder, read_json, write_json
from afn_model.network.encoder import AudioEncoder
from afn_model.network.speech_network import SpeechNetwork
from afn_model.weights.checkpoint import (
    DTYPE_NAMES,
    DTYPES,
    SkipInit,
    Stored,
    compare_headers,
    compare_names,
    fill,
    find_layout,
    keys_of,
    our_name,
    publish,
    save_shards,
    stored_tensors,
)
from afn_model.weights.config_json import JsonObject, to_json, token_ids

if TYPE_CHECKING:
    from afn_model.network.network import Network

Speech = TypeVar("Speech", bound="SpeechNetwork")
TABLE = {"encoder.": ("", "model.encoder."), "decoder.": ("", "model.decoder."), "ctc_head.": ("", "ctc_head.")}
TIED = "proj_out.weight"  # the embedding once more
WHISPER_PAD = 50_256  # what transformers takes for padding where a configuration says nothing
FIXED = {
    "model_type": ("whisper",),
    "activation_function": ("gelu",),
    "scale_embedding": (False,),
    "tie_word_embeddings": (True,),
    "quantization_config": (),
}


def load_speech(
    cls: type[Speech], folder: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Speech:
    """An encoder with its decoder, from Whisper's layout of transformers or from ``save_speech``.

    Args:
        cls: the model class.
        folder: with config.json and safetensors.
        dtype: of the weights; default the stored one.
        device: where they go.

    Raises:
        ValueError: one line: no such folder or configuration, one that this code does not compute, a damaged shard, a
            missing, unexpected or mis-shaped tensor.
    """
    model, stored = speech_on_meta(cls, folder)
    fill(model, stored, dtype or _dtype(stored), torch.device(device), None)
    return model.eval()


def speech_on_meta(cls: type[Speech], folder: str | Path) -> tuple[Speech, dict[str, Stored]]:
    """A folder's model without its weights, on the meta device, and where each of them lies.

    Raises:
        ValueError: as ``load_speech``, but for what only reading a tensor shows.
    """
    folder = model_folder(folder)
    with torch.device("meta"), SkipInit():
        model = cls(read_speech_config(folder))
    return model, _checked(model, _stored(folder), folder)


def save_speech(model: SpeechNetwork, folder: str | Path) -> None:
    """Writes config.json and safetensors, in the place of what the folder holds.

    transformers reads the folder as Whisper where encoder and decoder are equally wide, positions are learned and
    frames are of 20 ms; otherwise config.json has more keys, which ``load_speech`` reads. Of a CTC head, which Whisper
    has not, transformers says that it leaves it out.
    """
    folder, tensors = Path(folder), {}
    for name, tensor in model.state_dict().items():
        part = f"{name.partition('.')[0]}."
        tensors[TABLE[part][1] + name.removeprefix(part)] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=PARTIAL) as temporary:
        staged = Path(temporary)
        save_shards(staged, tensors)
        dtype = model.decoder.embed_tokens.weight.dtype
        write_json(staged / "config.json", speech_json(model.config) | {"dtype": DTYPE_NAMES[dtype]})
        publish(staged, folder)


def load_encoder(folder: str | Path, *, dtype: torch.dtype | None = None) -> AudioEncoder:
    """The encoder of a folder: of one of this module's, or of a model of AF-Next in any layout.

    Raises:
        ValueError: as ``load_speech``.
    """
    from afn_model.weights.config_json import read_config

    folder = model_folder(folder)
    if is_speech(folder):
        config, stored = read_speech_config(folder).audio, _stored(folder)
    else:
        config, stored = read_config(folder).audio, stored_tensors(folder, find_layout(folder))
    with torch.device("meta"), SkipInit():
        encoder = AudioEncoder(config)
    own = {name.removeprefix("encoder."): place for name, place in stored.items() if name.startswith("encoder.")}
    own = _checked(encoder, own, folder)
    fill(encoder, own, dtype or _dtype(own), torch.device("cpu"), None)
    return encoder


def replace_encoder(model: Network, folder: str | Path) -> None:
    """Gives a model the encoder of another folder, in place and in the dtype that the model has.

    Raises:
        ValueError: as ``load_encoder``; an encoder of another shape.
    """
    encoder = load_encoder(folder, dtype=model.dtype)
    if encoder.config != model.encoder.config:
        raise ValueError(f"{folder}: its encoder is {encoder.config}, expected {model.encoder.config}")
    model.encoder.load_state_dict(encoder.state_dict())


def is_speech(folder: str | Path) -> bool:
    """Whether a folder holds an encoder with a decoder of its own."""
    file = Path(folder) / "config.json"
    return file.is_file() and read_json(file).get("model_type") == "whisper"


def read_speech_config(folder: Path) -> SpeechConfig:
    """The configuration of a folder.

    Raises:
        ValueError: one line with the file: not there, no Whisper, a value out of range, a field that changes what is
            computed.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: no config.json")
    try:
        config = speech_config(read_json(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    path = folder / "tokenizer.json"
    ids = token_ids(path) if path.is_file() else {}
    if max(ids.values(), default=0) >= config.vocab_size:
        text = f"{max(ids.values()) + 1} tokens but the model's vocabulary is {config.vocab_size}"
        raise ValueError(f"{path}: wrong vocabulary: the tokenizer has {text}")
    stop = tuple(ids[token] for token in ("<|im_end|>", "<|endoftext|>") if token in ids)
    audio = ids.get("<sound>", config.audio_token_id)
    return replace(config, audio_token_id=audio, stop_token_ids=stop or config.stop_token_ids)


def speech_config(raw: dict[str, Any]) -> SpeechConfig:
    """A SpeechConfig from what config.json holds."""
    told = JsonObject(raw)
    if told.get("model_type") is None:
        raise ValueError("model_type is missing")
    told.only(FIXED)
    width = told.whole("d_model")
    return SpeechConfig(
        AudioConfig(
            n_mels=told.whole("num_mel_bins", default=80),
            width=width,
            layers=told.whole("encoder_layers"),
            heads=told.whole("encoder_attention_heads"),
            ffn=told.whole("encoder_ffn_dim"),
            max_positions=told.whole("max_source_positions", default=1500),
        ),
        vocab_size=told.whole("vocab_size"),
        width=told.whole("decoder_width", default=width),
        layers=told.whole("decoder_layers"),
        heads=told.whole("decoder_attention_heads"),
        ffn=told.whole("decoder_ffn_dim"),
        max_positions=told.whole("max_target_positions", default=448),
        positions=told.get("decoder_positions") or "learned",
        rope_theta=told.number("rope_theta", default=10_000.0),
        pooled=told.get("pooled_frames") or False,
        ctc=told.get("ctc_head") or False,
    )


def speech_json(config: SpeechConfig) -> dict[str, Any]:
    """What config.json holds of a SpeechConfig."""
    audio = config.audio
    told = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "num_mel_bins": audio.n_mels,
        "d_model": audio.width,
        "encoder_layers": audio.layers,
        "encoder_attention_heads": audio.heads,
        "encoder_ffn_dim": audio.ffn,
        "max_source_positions": audio.max_positions,
        "vocab_size": config.vocab_size,
        "decoder_layers": config.layers,
        "decoder_attention_heads": config.heads,
        "decoder_ffn_dim": config.ffn,
        "max_target_positions": config.max_positions,
        "activation_function": "gelu",
        "tie_word_embeddings": True,
    }
    plain = SpeechConfig()
    own = {} if config.vocab_size > WHISPER_PAD else {"pad_token_id": None}
    own |= {"decoder_width": config.width} if config.width != audio.width else {}
    own |= {"decoder_positions": config.positions} if config.positions != plain.positions else {}
    own |= {"rope_theta": config.rope_theta} if config.positions == "rotary" else {}
    own |= {"pooled_frames": True} if config.pooled else {}
    return told | own | ({"ctc_head": True} if config.ctc else {})


def config_as_json(config: ModelConfig | SpeechConfig, dtype: str) -> dict[str, Any]:
    """What config.json holds of either kind of model."""
    return speech_json(config) if isinstance(config, SpeechConfig) else to_json(config, dtype)


def _stored(folder: Path) -> dict[str, Stored]:
    found = {our_name(key, "", TABLE): place for key, place in keys_of(folder).items() if key != TIED}
    if not found:
        raise ValueError(f"{folder}: no safetensors weights")
    return found


def _checked(module: torch.nn.Module, stored: dict[str, Stored], folder: Path) -> dict[str, Stored]:
    """Where each weight of a module lies."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    compare_names(folder, set(wanted), set(stored))
    compare_headers(wanted, stored)
    return {name: stored[name] for name in wanted}


def _dtype(stored: dict[str, Stored]) -> torch.dtype:
    return DTYPES[next(iter(stored.values())).dtype]
