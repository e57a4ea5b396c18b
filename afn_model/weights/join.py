"""The base of the first stage: a Whisper encoder and a Qwen2 language model, joined by an untrained adaptor."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from afn_model.config import ModelConfig
from afn_model.files import model_folder, read_json
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.tokenizer import SPECIAL_TOKENS, _read_tokenizer, _special_names
from afn_model.weights.checkpoint import (
    SkipInit,
    Stored,
    compare_headers,
    compare_names,
    keys_of,
    open_shard,
    read_tensor,
)
from afn_model.weights.config_json import from_json

if TYPE_CHECKING:
    from afn_model.network.network import Network

Model = TypeVar("Model", bound="Network")
# Where transformers' models of an encoder keep it: Whisper for transcription, Whisper, the encoder alone, this family.
ENCODERS = ("model.encoder.", "encoder.", "", "audio_tower.", "model.audio_tower.")
LANGUAGE_MODELS = ("model.", "", "language_model.model.", "model.language_model.")
# Our fields of an encoder's config.json, by what Whisper calls them and what this family does.
AUDIO = {
    "num_mel_bins": ("num_mel_bins",),
    "hidden_size": ("d_model", "hidden_size"),
    "num_hidden_layers": ("encoder_layers", "num_hidden_layers"),
    "num_attention_heads": ("encoder_attention_heads", "num_attention_heads"),
    "intermediate_size": ("encoder_ffn_dim", "intermediate_size"),
    "max_source_positions": ("max_source_positions",),
    "activation_function": ("activation_function",),
    "scale_embedding": ("scale_embedding",),
}
MELS, POSITIONS = 128, 1500  # of the features that the processor makes of a window of 30 s


def join(
    cls: type[Model],
    encoder: str | Path,
    language_model: str | Path,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[Model, AFNextProcessor]:
    """A model and its processor from two folders of transformers.

    The adaptor is drawn from N(0, 1 / fan-in) with zero biases. Tokens for audio that the tokenizer has not are added;
    their rows of embedding and head are drawn from N(μ, σ²) of each column's other rows. A head that is tied to the
    embedding becomes a copy of it.

    Args:
        cls: the model class.
        encoder: with a Whisper encoder of 128 mel bins (large-v3), its decoder or not.
        language_model: with a Qwen2 (or Qwen2.5) language model and its tokenizer.
        seed: of what is drawn.
        dtype: of the weights; default that of the language model's embedding.

    Raises:
        ValueError: one line: a folder without config.json, weights or tokenizer, another kind of model, sizes that do
            not fit, or tensors that are missing or of another shape.
    """
    encoder, language_model = model_folder(encoder), model_folder(language_model)
    tokenizer, variables = tokenizer_of(language_model)
    rows, config = joined_config(encoder, language_model, tokenizer)
    with torch.device("meta"), SkipInit():
        model = cls(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parts = {
        "encoder.": (encoder, ENCODERS, "conv1.weight"),
        "language_model.": (language_model, LANGUAGE_MODELS, "embed_tokens.weight"),
    }
    state: dict[str, Tensor] = {}
    for ours, (folder, prefixes, first) in parts.items():
        wanted = {name.removeprefix(ours): shape for name, shape in shapes.items() if name.startswith(ours)}
        if "embed_tokens.weight" in wanted:
            wanted["embed_tokens.weight"] = (rows, config.text.width)
        stored, prefix = _part(folder, prefixes, first)
        compare_names(folder, set(wanted), set(stored))
        compare_headers(wanted, stored)
        state |= {ours + name: tensor for name, tensor in _read(stored).items()}
        if ours == "language_model.":
            state["lm_head.weight"] = _head(folder, prefix, state["language_model.embed_tokens.weight"])
    dtype = dtype or state["language_model.embed_tokens.weight"].dtype
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, shape in shapes.items():
            if name.startswith("adaptor."):
                drawn = torch.zeros(shape) if len(shape) == 1 else torch.randn(shape) * shape[1] ** -0.5
                state[name] = drawn.to(dtype)
        fresh = list(range(_vocabulary(language_model), tokenizer.get_vocab_size()))
        for name in ("language_model.embed_tokens.weight", "lm_head.weight"):
            state[name] = extended(state[name], config.text.vocab_size, fresh)
    model.load_state_dict(state, assign=True)
    processor = AFNextProcessor(tokenizer, template_variables=variables, max_positions=config.text.max_positions)
    return model.eval(), processor


def tokenizer_of(folder: Path) -> tuple[Tokenizer, dict[str, str]]:
    """The language model's tokenizer with the family's special tokens, and names that a chat template may use."""
    file = folder / "tokenizer_config.json"
    settings = read_json(file) if file.exists() else {}
    if not (folder / "tokenizer.json").exists() and not (folder / "vocab.json").exists():
        raise ValueError(f"{folder}: neither tokenizer.json nor vocab.json with merges.txt")
    tokenizer = _read_tokenizer(folder, settings)
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    return tokenizer, _special_names(file, settings)


def joined_config(encoder: Path, language_model: Path, tokenizer: Tokenizer) -> tuple[int, ModelConfig]:
    """Rows of the language model's embedding as it is, and the configuration of both together."""
    heard, told = _config(encoder), _config(language_model)
    heard = heard.get("audio_config", heard)
    told = told.get("text_config", told)
    audio = {ours: next((heard[n] for n in names if heard.get(n) is not None), None) for ours, names in AUDIO.items()}
    kind = told.get("model_type")
    if kind != "qwen2":
        raise ValueError(f"{language_model}: a language model of the type qwen2 is expected, not {kind!r:.40}")
    for name, expected in (("num_mel_bins", MELS), ("max_source_positions", POSITIONS)):
        if audio[name] != expected:
            found = f"{name} is {audio[name]!r:.40}"
            raise ValueError(f"{encoder}: {found}; {expected} is expected, as Whisper large-v3 has")
    text = {key: value for key, value in told.items() if key != "tie_word_embeddings"}
    raw: dict[str, Any] = {"model_type": "musicflamingo", "audio_config": audio, "text_config": text}
    try:
        config = from_json(raw)
    except ValueError as error:
        where = encoder if "audio" in str(error) else language_model
        raise ValueError(f"{where}: {error}") from None
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    vocab = max(config.text.vocab_size, tokenizer.get_vocab_size())
    joined = replace(
        config,
        text=replace(config.text, vocab_size=vocab),
        audio_token_id=ids["<sound>"],
        audio_bos_token_id=ids["<|sound_bos|>"],
        audio_eos_token_id=ids["<|sound_eos|>"],
        stop_token_ids=(ids["<|im_end|>"], ids["<|endoftext|>"]),
    )
    return config.text.vocab_size, joined


def extended(weight: Tensor, rows: int, fresh: list[int]) -> Tensor:
    """A table with so many rows, of which those beyond its own and the fresh ones are drawn like the others."""
    fresh = sorted({*fresh, *range(len(weight), rows)})
    if not fresh:
        return weight
    kept = torch.ones(len(weight), dtype=torch.bool)
    kept[[row for row in fresh if row < len(weight)]] = False
    like = weight[kept].float()
    found = weight.new_empty(rows, weight.shape[1])
    found[: len(weight)] = weight
    found[fresh] = (like.mean(0) + like.std(0) * torch.randn(len(fresh), weight.shape[1])).to(weight.dtype)
    return found


def _vocabulary(folder: Path) -> int:
    """Tokens of a language model's own tokenizer: rows of its embedding beyond them were never trained."""
    file = folder / "tokenizer_config.json"
    return _read_tokenizer(folder, read_json(file) if file.exists() else {}).get_vocab_size()


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder}: no config.json")
    return copy.deepcopy(read_json(folder / "config.json"))


def _part(folder: Path, prefixes: tuple[str, ...], first: str) -> tuple[dict[str, Stored], str]:
    """The tensors under the prefix that has ``first``, by their names behind it."""
    keys = keys_of(folder)
    prefix = next((prefix for prefix in prefixes if prefix + first in keys), None)
    if prefix is None:
        named = ", ".join(filter(None, prefixes))
        raise ValueError(f"{folder}: no {first} under {named} among its {len(keys)} tensors")
    found = {name.removeprefix(prefix): stored for name, stored in keys.items() if name.startswith(prefix)}
    if not prefix:
        found.pop("lm_head.weight", None)
    return found, prefix


def _head(folder: Path, prefix: str, embedding: Tensor) -> Tensor:
    """The head, the embedding where it is tied to it."""
    keys = keys_of(folder)
    name = "language_model.lm_head.weight" if prefix == "language_model.model." else "lm_head.weight"
    if name not in keys:
        if read_json(folder / "config.json").get("tie_word_embeddings", False):
            return embedding.clone()
        raise ValueError(f"{folder}: no {name}, and its head is not tied to the embedding")
    compare_headers({name: tuple(embedding.shape)}, keys)
    return _read({name: keys[name]})[name]


def _read(stored: dict[str, Stored]) -> dict[str, Tensor]:
    shards = {place.file: open_shard(place.file) for place in stored.values()}
    return {name: read_tensor(shards[place.file], place.file, place.key) for name, place in stored.items()}
