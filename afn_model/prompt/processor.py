"""From conversations to a packed batch of token ids and audio windows, and from token ids back to text.

processor = AFNextProcessor.from_pretrained(folder)
batch = processor([{"role": "user", "content": [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "?"}]}])
processor.decode(model.generate(batch)[0])
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from afn_model.audio.digests import DecodedRecording
from afn_model.audio.frames import WINDOW, audio_tokens
from afn_model.audio.recording import Audio, load
from afn_model.checks import is_listed, number, shown, whole
from afn_model.files import model_folder, write_json, write_text
from afn_model.prompt.batch import IGNORED, Batch, Prepared, _pack
from afn_model.prompt.conversation import SOUND, Turn, is_conversation, read_conversation
from afn_model.prompt.speech_task import START
from afn_model.prompt.template import DEFAULT_TEMPLATE, WHISPER_TEMPLATE, ChatTemplate, answer_spans, stop_tokens
from afn_model.prompt.tokenizer import (
    _has_tokenizer,
    _read_json,
    _read_template,
    _read_tokenizer,
    _read_whisper,
    _special_names,
)


class AFNextProcessor:
    """Tokenizer, chat template and audio loading of one model.

    Args:
        tokenizer: with ``<sound>`` and, unless ``boundaries`` is False, ``<|sound_bos|>`` and ``<|sound_eos|>``.
        chat_template: Jinja source; the project's own if None.
        template_variables: names the template may use, such as ``eos_token``.
        boundaries: whether an audio is ``<|sound_bos|>`` ``<sound>``×N ``<|sound_eos|>`` (Music Flamingo, AF-Next)
            or ``<sound>``×N alone (AF3).
        max_seconds: longest audio; the rest is left out with a warning.
        max_positions: the model's context in tokens, or None for no limit.
        strict: an error where an audio is longer than ``max_seconds``.
        pcm_dtype: ``torch.float32`` or ``torch.int16``.
        text_positions: of a speech decoder, tokens of a text beside the audio, its prompt included; None of a language
            model.
        whole_windows: whether recordings that are asked about are made of whole windows of 30 s, with silence behind
            them, as Whisper hears them. Training hears recordings as they are.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        chat_template: str | None = None,
        template_variables: dict[str, str] | None = None,
        boundaries: bool = True,
        max_seconds: float = 1800,
        max_positions: int | None = None,
        strict: bool = False,
        pcm_dtype: torch.dtype = torch.float32,
        text_positions: int | None = None,
        whole_windows: bool = False,
    ):
        self.tokenizer = tokenizer
        self.template = ChatTemplate(chat_template or DEFAULT_TEMPLATE.read_text("utf-8"), template_variables)
        self.boundaries = boundaries
        self.max_seconds, self.max_positions = max_seconds, max_positions
        self.strict, self.pcm_dtype = strict, pcm_dtype
        self.text_positions, self.whole_windows = text_positions, whole_windows
        self.sound_id = self.token_id(SOUND)
        self._before = [self.token_id("<|sound_bos|>")] if boundaries else []
        self._after = [self.token_id("<|sound_eos|>")] if boundaries else []
        self._counts: dict[str, int] = {}

    def token_id(self, token: str) -> int:
        """The id of a token, by its string: ids differ between releases.

        Raises:
            ValueError: the tokenizer has no such token.
        """
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no token {token} among its {self.tokenizer.get_vocab_size()}")
        return found

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer: ``<|im_end|>``, and ``<|endoftext|>`` where the tokenizer has it; Whisper's only
        that."""
        first, *others = stop_tokens(self.template.source)
        found = (self.tokenizer.token_to_id(token) for token in others)
        return [self.token_id(first), *(token for token in found if token is not None)]

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of token ids, special tokens left out; ValueError where they are no list."""
        if not is_listed(ids):
            raise ValueError(f"token ids must be a list of whole numbers, got {shown(ids)}")
        return self.tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)

    def __call__(
        self,
        conversations: dict | Sequence,
        *,
        audios=None,
        training: bool = False,
        add_generation_prompt: bool | None = None,
    ) -> Batch:
        """Prepares one conversation or several.

        Args:
            conversations: a conversation or a list of them, in any form that ``read_conversation`` reads.
            audios: what ``<sound>`` in the messages' text stands for: a list, or one list for each conversation.
            training: also make labels: what the assistant says and its closing ``<|im_end|>``.
            add_generation_prompt: end with the assistant's turn opened; None does so when not training and the
                last message is not the assistant's.

        Returns:
            ``Batch``.

        Raises:
            ValueError: audio that cannot be used, placeholders that do not match the audios, a conversation past the
                context, or one with nothing to learn from when training.
        """
        single = is_conversation(conversations)
        several = [conversations] if single else list(conversations)
        if not several:
            raise ValueError("no conversations")
        given = [audios] if single or audios is None else list(audios)
        if audios is None:
            given = given * len(several)
        if len(given) != len(several):
            raise ValueError(f"{len(given)} lists of audios for {len(several)} conversations")
        prepared = []
        for index, (conversation, its_audios) in enumerate(zip(several, given, strict=True)):
            try:
                turns = read_conversation(conversation, its_audios)
                prepared.append(self.prepare(turns, training=training, add_generation_prompt=add_generation_prompt))
            except ValueError as error:
                raise error if single else ValueError(f"conversation {index}: {error}") from None
        return self.pack(prepared)

    def prepare(
        self,
        turns: list[Turn],
        *,
        training: bool = False,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        max_seconds: float | None = None,
        load_with: Callable[..., Tensor] = load,
    ) -> Prepared:
        """Loads and tokenises one conversation.

        Args:
            turns: from ``read_conversation``.
            training, add_generation_prompt: as for calling the processor.
            continue_final_message: the last turn is the assistant's and stays open: the answer goes on from it.
            max_seconds: longest audio; that of the processor if None.
            load_with: called as ``afn_model.audio.recording.load`` is, for each recording once.

        Raises:
            ValueError: as for calling the processor.
        """
        if continue_final_message:
            if len(turns) < 2 or turns[-1].role != "assistant":
                raise ValueError("only a message of the assistant behind another message can be continued")
            text = self._render(turns[:-1], False, True) + turns[-1].text
        else:
            text = self._render(turns, training, add_generation_prompt)
        spans = answer_spans(text, turns) if training else []
        audios = [audio for turn in turns for audio in turn.audios]
        longest = self.max_seconds if max_seconds is None else max_seconds
        options = {"strict": self.strict, "max_seconds": longest, "dtype": self.pcm_dtype}
        loaded = {audio: load_with(audio, **options) for audio in dict.fromkeys(audios)}
        clips = [loaded[audio] for audio in audios]
        if self.whole_windows and not training:
            clips = [F.pad(clip, (0, -clip.numel() % WINDOW)) for clip in clips]
        ids, labels = self._encode(text, [audio_tokens(clip.numel()) for clip in clips], spans)
        if self.max_positions is not None and len(ids) > self.max_positions:
            raise ValueError(f"{len(ids)} tokens, but the model's context is {self.max_positions}")
        if self.text_positions is not None:
            self.check_text(int((ids != self.sound_id).sum()))
        if training:
            return Prepared(ids, labels, clips)
        return Prepared(ids, None, clips, [_digests(audio, clip) for audio, clip in zip(audios, clips, strict=True)])

    def pack(self, prepared: Sequence[Prepared], *, ragged: bool = False) -> Batch:
        """One batch of conversations, one after another; labels where all of them have some.

        Args:
            prepared: the conversations.
            ragged: windows are not padded: ``Batch.pcm`` is one row of samples.
        """
        return _pack(prepared, self.pcm_dtype, ragged)

    def check_text(self, tokens: int) -> None:
        """ValueError where a speech decoder has no positions for so many tokens of text."""
        if self.text_positions is not None and tokens > self.text_positions:
            raise ValueError(f"{tokens} tokens of text, but the decoder's context is {self.text_positions}")

    def text_tokens(
        self, turns: list[Turn], *, training: bool = False, add_generation_prompt: bool | None = None
    ) -> int:
        """Tokens of a conversation without those of its audio: the text, and what stands around each audio."""
        text = self._render(turns, training, add_generation_prompt)
        pieces = text.split(SOUND)
        around = len(self._before) + len(self._after)
        return sum(map(self._count, pieces)) + around * (len(pieces) - 1)

    def text_and_supervised(self, turns: list[Turn]) -> tuple[int, int]:
        """``text_tokens`` of a conversation to train on, and how many of them a loss is computed for.

        Raises:
            ValueError: nothing to learn.
        """
        text = self._render(turns, True, None)
        spans, offset, tokens, supervised = answer_spans(text, turns), 0, 0, 0
        for index, piece in enumerate(text.split(SOUND)):
            tokens += (len(self._before) + len(self._after)) * bool(index)
            if any(first < offset + len(piece) and offset < last for first, last in spans):
                encoding = self.tokenizer.encode(piece, add_special_tokens=False)
                tokens += len(encoding)
                supervised += sum(_learnt(encoding, offset, spans))
            else:
                tokens += self._count(piece)
            offset += len(piece) + len(SOUND)
        return tokens, supervised

    def _count(self, piece: str) -> int:
        """Tokens of a piece of a prompt; what stands before the first audio is nearly always the same."""
        found = self._counts.get(piece)
        if found is None:
            found = len(self.tokenizer.encode(piece, add_special_tokens=False))
            if len(piece) < 512 and len(self._counts) < 256:
                self._counts[piece] = found
        return found

    def _render(self, turns: list[Turn], training: bool, prompt: bool | None) -> str:
        return self.template.render(
            turns, prompt if prompt is not None else not training and turns[-1].role != "assistant"
        )

    def _encode(self, text: str, counts: list[int], spans: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Ids and labels of a prompt whose i-th ``<sound>`` stands for ``counts[i]`` tokens."""
        ids, labels, offset = [], [], 0
        for index, piece in enumerate(text.split(SOUND)):
            if index:
                audio = self._before + [self.sound_id] * counts[index - 1] + self._after
                ids.append(torch.tensor(audio))
                labels.append(torch.full((len(audio),), IGNORED))
            encoding = self.tokenizer.encode(piece, add_special_tokens=False)
            learnt = _learnt(encoding, offset, spans)
            found = torch.tensor(encoding.ids, dtype=torch.int64)
            ids.append(found)
            labels.append(found.masked_fill(~torch.tensor(learnt, dtype=torch.bool), IGNORED))
            offset += len(piece) + len(SOUND)
        return torch.cat(ids), torch.cat(labels)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options) -> AFNextProcessor:
        """Reads a model folder: transformers, hub or native layout.

        Args:
            folder: holds ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``, itself or under ``llm/``.
            options: replace what the folder says (see the class).

        A folder without a chat template gets the project's own, with a warning; one of Whisper's own gets Whisper's
        prompt, and the placeholder behind all of its tokens.

        Raises:
            ValueError: no such folder, no tokenizer in it, or a file in it that cannot be read.
        """
        folder = model_folder(folder)
        home = next((home for home in (folder, folder / "llm") if _has_tokenizer(home)), None)
        if home is None:
            raise ValueError(f"{folder}: neither tokenizer.json nor vocab.json with merges.txt, nor under llm/")
        config = _read_json(folder / "config.json") or _read_json(home / "config.json")
        settings = _read_json(folder / "processor_config.json")
        tokenizer_config = _read_json(home / "tokenizer_config.json")
        speech = config.get("model_type") == "whisper"
        tokenizer = (_read_whisper if speech else _read_tokenizer)(home, tokenizer_config)
        template = _read_template(folder, tokenizer_config) or _read_template(home, tokenizer_config)
        own = speech and template is None and tokenizer.token_to_id(START) is not None
        found = {
            "chat_template": WHISPER_TEMPLATE.read_text("utf-8") if own else template,
            "template_variables": _special_names(home / "tokenizer_config.json", tokenizer_config),
            "boundaries": _boundaries(config, settings, tokenizer),
            "max_seconds": _max_seconds(folder, settings),
            "max_positions": _max_positions(folder, config),
            "text_positions": _text_positions(folder, config) if speech else None,
            "whole_windows": _whole_windows(folder, settings, own),
        }
        if not (found | options)["chat_template"]:
            warnings.warn(f"{folder}: no chat template in it; the one of Audio Flamingo Next is used", stacklevel=2)
        try:
            return cls(tokenizer, **found | options)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes tokenizer, chat template and settings, as transformers' processors of this family read them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        write_text(folder / "chat_template.jinja", self.template.source)
        first, *_ = stop_tokens(self.template.source)
        names = {"eos_token": first, "pad_token": "<|endoftext|>"} | self.template.variables
        kind = "Qwen2Tokenizer" if first == "<|im_end|>" else "WhisperTokenizer"
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": kind} | names)
        extractor = {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": 128,
            "return_attention_mask": True,
        }
        settings = {
            "processor_class": "MusicFlamingoProcessor" if self.boundaries else "AudioFlamingo3Processor",
            "audio_token": SOUND,
            "max_audio_len": self.max_seconds,
            "feature_extractor": extractor,
        }
        own = {"whole_windows": self.whole_windows} if self.text_positions is not None else {}
        write_json(folder / "processor_config.json", settings | own)


def _digests(audio: Audio, clip: Tensor) -> tuple[bytes, ...] | None:
    """Those of a clip's windows, where the recording it is the whole of keeps them."""
    known = isinstance(audio.source, DecodedRecording) and clip is audio.source.pcm
    return audio.source.digests if known else None


def _learnt(encoding: Encoding, offset: int, spans: list[tuple[int, int]]) -> list[bool]:
    """Which tokens of a piece that begins at ``offset`` are learnt.

    A token that begins before the answer belongs to the prompt.
    """
    return [
        any(first <= offset + start and offset + end <= last for first, last in spans)
        for start, end in encoding.offsets
    ]


def _boundaries(config: dict, settings: dict, tokenizer: Tokenizer) -> bool:
    """Whether an audio stands between boundary tokens: by the model's type, the processor's, or the vocabulary."""
    kind = config.get("model_type")
    if not kind and settings.get("processor_class") == "AudioFlamingo3Processor":
        kind = "audioflamingo3"
    if kind in ("musicflamingo", "audioflamingo3"):
        return kind == "musicflamingo"
    return tokenizer.token_to_id("<|sound_bos|>") is not None


def _max_seconds(folder: Path, settings: dict) -> float:
    seconds = settings.get("max_audio_len")
    if seconds is None:
        return 1800
    number(seconds, f"{folder / 'processor_config.json'}: max_audio_len", above=0)
    return seconds


def _max_positions(folder: Path, config: dict) -> int | None:
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        raise ValueError(f"{folder / 'config.json'}: text_config must be an object, got {shown(text)}")
    positions = text.get("max_position_embeddings")
    if positions is None:
        return None
    return whole(positions, f"{folder / 'config.json'}: text_config.max_position_embeddings", 1)


def _text_positions(folder: Path, config: dict) -> int:
    positions = config.get("max_target_positions")
    return whole(448 if positions is None else positions, f"{folder / 'config.json'}: max_target_positions", 1)


def _whole_windows(folder: Path, settings: dict, default: bool) -> bool:
    found = settings.get("whole_windows", default)
    if not isinstance(found, bool):
        raise ValueError(f"{folder / 'processor_config.json'}: whole_windows must be true or false, got {shown(found)}")
    return found
