"""Tokenizers of the family: trained, read from a model folder, and their special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from afn_model.prompt.conversation import SOUND

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", SOUND, "<|sound_bos|>", "<|sound_eos|>")

# Qwen2's split of a text into words before byte-pair encoding; the released vocabularies depend on it.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer with the family's special tokens.

    Args:
        texts: the corpus.
        vocab_size: at most this many tokens, the 256 bytes and 6 special tokens included.

    Returns:
        a tokenizer that encodes any text; look its ids up by string.
    """
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _has_tokenizer(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names


def _read_tokenizer(folder: Path, config: dict) -> Tokenizer:
    try:
        if (folder / "tokenizer.json").exists():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer = _byte_level(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{folder}: the tokenizer cannot be read: {error}") from None
    added = {int(number): token for number, token in config.get("added_tokens_decoder", {}).items()}
    added |= (
        {number: {"content": text} for text, number in _read_json(folder / "added_tokens.json").items()}
        if not added
        else {}
    )
    for number, token in sorted(added.items()):
        tokenizer.add_tokens([AddedToken(token["content"], special=token.get("special", True), normalized=False)])
        if tokenizer.token_to_id(token["content"]) != number:
            raise ValueError(f"{folder}: added token {token['content']} has id {number}, which leaves a gap")
    return tokenizer


def _read_template(folder: Path, tokenizer_config: dict) -> str | None:
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text("utf-8")
    template = _read_json(folder / "chat_template.json").get("chat_template") or tokenizer_config.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def _special_names(tokenizer_config: dict) -> dict[str, str]:
    """Such as ``{"eos_token": "<|im_end|>"}``; a token is written as its text or as a description of it."""
    found = {name: tokenizer_config.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return {name: t["content"] if isinstance(t, dict) else t for name, t in found.items() if t}


def _read_json(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
