"""A model folder opened for questions; ``infer.answer.answer`` is the same for a model in memory (demo, evaluation).

session = Session(folder)
question = [{"type": "audio", "path": "first.wav", "start": 60}, {"type": "text", "text": "What happens, and when?"}]
(answer,) = session.answer([[{"role": "user", "content": question}]], SamplingParams(max_new_tokens=256))
print(answer.text)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from afn_model.afnext import AFNext
from afn_model.afwhisper import AFWhisper
from afn_model.infer.answer import Answer, answer, answers
from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.speech_answer import speech_answers
from afn_model.network.fused import fuse
from afn_model.prompt.processor import AFNextProcessor
from afn_model.weights.checkpoint import load
from afn_model.weights.speech import is_speech, load_speech


class Session:
    """A model and its processor. Weights are loaded on first use, after the recordings have been decoded.

    Args:
        folder: a model folder in any layout.
        dtype: of the weights; as stored if None.
        device: "auto" takes a GPU where there is one.
        rote: reading of the rotary time embedding; what the folder says if None.
        strict: an error where a recording is longer than the model takes or its last mp3 frame is incomplete.
        on_step: called with (tensors read, all tensors) while weights are read.
        read: reads the model, as ``weights.checkpoint.load``, which does so if None: called with (AFNext, folder), and
            dtype, device, rote and on_step.

    Raises:
        ValueError: no such folder, no tokenizer in it, no such device, no GPU where one is asked for, or a dtype that
            weights cannot have.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "auto",
        rote: str | None = None,
        strict: bool = False,
        on_step: Callable[[int, int], Any] | None = None,
        read: Callable[..., AFNext] | None = None,
    ):
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype {dtype}: weights are floating point")
        self._model: AFNext | None = None
        self._engine: Engine | None = None
        self._speech: AFWhisper | None = None
        self._is_speech = is_speech(folder)
        self._loading = Lock()
        self.folder, self.dtype, self.rote, self.on_step, self.read = folder, dtype, rote, on_step, read or load
        self.processor = AFNextProcessor.from_pretrained(folder, strict=strict)
        self.device = device_named(device)

    @property
    def model(self) -> AFNext:
        """The model, read when first asked for, once if several threads ask."""
        with self._loading:
            if self._model is None:
                options = {"dtype": self.dtype, "device": self.device, "rote": self.rote, "on_step": self.on_step}
                self._model = self.read(AFNext, self.folder, **options)
            return self._model

    @property
    def speech(self) -> AFWhisper:
        """The encoder with its decoder, of a folder that holds one."""
        with self._loading:
            if self._speech is None:
                self._speech = load_speech(AFWhisper, self.folder, dtype=self.dtype, device=self.device)
            return self._speech

    @property
    def engine(self) -> Engine:
        """What answers, made when first asked for. It keeps what it has computed: a second question about a recording
        does not listen again."""
        model = self.model
        with self._loading:
            if self._engine is None:
                self._engine = engine_of(model, self.processor)
            return self._engine

    def answer(self, conversations: Sequence, params: SamplingParams | None = None, **options: Any) -> list[Answer]:
        """The model's answers to conversations; an error raises. See ``afn_model.infer.answer.answer``."""
        if not self._is_speech:
            return answer(lambda: self.engine, self.processor, conversations, params, **options)
        found = sorted(self.answers(conversations, params, **options), key=lambda one: one[0])
        for _, one in found:
            if isinstance(one, ValueError):
                raise one
        return [one for _, one in found if isinstance(one, Answer)]

    def answers(
        self, conversations: Sequence, params: SamplingParams | None = None, **options: Any
    ) -> Iterator[tuple[int, Answer | ValueError]]:
        """Answers as they come, with errors in the places of those that cannot be given, so that one bad recording does
        not end the work on the others. See ``afn_model.infer.answer.answers``.
        """
        if self._is_speech:
            return speech_answers(lambda: self.speech, self.processor, conversations, params, **options)
        return answers(lambda: self.engine, self.processor, conversations, params, **options)


def engine_of(model: AFNext, processor: AFNextProcessor, **options: Any) -> Engine:
    """An engine that answers with a model as fast as it can; options are those of ``Engine``."""
    if model.device.type == "cuda":
        fuse(model.language_model)  # on a CPU a decode step is compiled as a whole
    return Engine(model, processor, **options)


def device_named(device: str | torch.device) -> torch.device:
    """The device of a name; "auto" is a GPU where there is one.

    Raises:
        ValueError: there is none, or weights there have no values.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device {device!r}: PyTorch knows none of this name") from None
    if found.type == "meta":
        raise ValueError(f"device {device}: weights there have no values")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: PyTorch finds no GPU (afn doctor says what there is)")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device}: the last GPU here is cuda:{torch.cuda.device_count() - 1}")
    return found
