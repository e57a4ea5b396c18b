"""Tokenizers of the family: trained, read from a model folder, and their special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from afn_model.checks import said, shown
from afn_model.files import read_json
from afn_model.prompt.conversation import SOUND, check_text

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
    """The tokenizer of a folder. Truncation and padding that were on when it was saved are off: a prompt is whole."""
    try:
        if (folder / "tokenizer.json").exists():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
        tokenizer = _byte_level(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except BaseException as error:  # tokenizers raises bare Exception, and panics outside of it
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{folder}: the tokenizer cannot be read: {said(error)}") from None
    for number, token, special in sorted(_added_tokens(folder, config)):
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
        if tokenizer.token_to_id(token) != number:
            raise ValueError(f"{folder}: added token {shown(token)} has id {number}, which leaves a gap")
    return tokenizer


def _read_whisper(folder: Path, config: dict) -> Tokenizer:
    """The tokenizer of Whisper's own folder, with the placeholder that it has not behind all of its tokens.

    Raises:
        ValueError: as ``_read_tokenizer``; no tokenizer.json: vocab.json and merges.txt do not say how words are cut.
    """
    if not (folder / "tokenizer.json").exists():
        wanted = f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        raise ValueError(f"{folder}: no tokenizer.json: transformers' {wanted} writes it")
    tokenizer = _read_tokenizer(folder, config)
    if tokenizer.token_to_id(SOUND) is None:
        tokenizer.add_tokens([AddedToken(SOUND, special=True, normalized=False)])
    return tokenizer


def _added_tokens(folder: Path, config: dict) -> list[tuple[int, str, bool]]:
    """(id, token, whether it is special) of the tokens beside the vocabulary."""
    described = config.get("added_tokens_decoder") or {}
    if described:
        where, pairs = folder / "tokenizer_config.json", described
    else:
        where, pairs = folder / "added_tokens.json", _read_json(folder / "added_tokens.json")
        pairs = {str(number): {"content": token} for token, number in pairs.items()}
    if not isinstance(pairs, dict):
        raise ValueError(f"{where}: the added tokens must be an object, got {shown(pairs)}")
    found = []
    for number, token in pairs.items():
        content = token.get("content") if isinstance(token, dict) else None
        if not re.fullmatch("[0-9]{1,9}", number) or not isinstance(content, str) or not content:
            raise ValueError(f"{where}: {shown({number: token})} is no added token with its id")
        check_text(content, f"{where}: an added token")
        found.append((int(number), content, token.get("special", True) is not False))
    return found


def template_of(folder: Path) -> str | None:
    """The chat template of a folder, None where it has none."""
    return _read_template(folder, _read_json(folder / "tokenizer_config.json"))


def _read_template(folder: Path, tokenizer_config: dict) -> str | None:
    """The chat template of a folder, None where it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not text in UTF-8: {error}") from None
    where = folder / "chat_template.json"
    template = _read_json(where).get("chat_template")
    if not template:
        where, template = folder / "tokenizer_config.json", tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{where}: chat_template must be text, got {shown(template)}")
    return template


def _special_names(file: Path, tokenizer_config: dict) -> dict[str, str]:
    """Such as ``{"eos_token": "<|im_end|>"}``; a token is written as its text or as a description of it."""
    found = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = tokenizer_config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if text is None or text == "":
            continue
        if not isinstance(text, str):
            raise ValueError(f"{file}: {name} must be text or an object with 'content', got {shown(token)}")
        found[name] = text
    return found


def _read_json(path: Path) -> dict:
    """A JSON object, {} where there is no such file."""
    return read_json(path) if path.exists() else {}
