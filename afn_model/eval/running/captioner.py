"""The paper's Captioner: the model describes every recording, and a text model answers from the descriptions.

Two passes with one folder of answers. A caption is made once for each distinct recording, whatever benchmarks ask about
it, and a question is asked again only where its captions, its text or the text model have changed.

questions, first, second = answer_by_captions(prepared, out, asking, text, hearing, reading)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.prompts import PROMPTS, content
from afn_model.eval.running.answers import read_answers
from afn_model.eval.running.asks import DIGITS, Ask, AskSettings, ask_of, clips_of
from afn_model.eval.running.clip_digests import MISSING, ClipDigests
from afn_model.eval.running.run import DIGESTS, PreparedRun, Share, run
from afn_model.eval.table import BenchmarkRow
from afn_model.infer.batch import BatchProgress
from afn_model.infer.batch_replica import Workers
from afn_model.prompt.questions import described
from afn_model.scoring.text import answer_in

CAPTIONS = BenchmarkRow("captions", "captions of the recordings", "", "detailed-caption", (), "", version="1")
Key = tuple[str, float | None, float | None]  # path, start, end


@dataclass(frozen=True)
class Captions:
    """The first pass.

    Args:
        asks: one for each distinct recording, by its bytes and the part that is meant.
        of: which ask describes a recording that a question is about.
        digests: of the recordings.
    """

    asks: list[Ask]
    of: dict[Key, Ask]
    digests: ClipDigests


def caption_asks(prepared: PreparedRun, out: str | Path, asking: AskSettings) -> Captions:
    """What the model is asked about every recording of a run.

    Args:
        prepared: its questions.
        out: its folder.
        asking: how the model describes.
    """
    digests = ClipDigests(Path(out) / DIGESTS)
    keys = dict.fromkeys(key for asks in prepared.asks.values() for ask in asks for key in clips_of(ask.messages))
    digests.read(path for path, _, _ in keys)
    text, settings = PROMPTS[asking.prompt_of(CAPTIONS)], asking.generation_of(CAPTIONS)
    found, of = dict[str, Ask](), dict[Key, Ask]()
    for path, start, end in keys:
        digest = digests(path)
        if digest == MISSING:
            continue
        part = "" if start is None and end is None else f":{start or 0.0:g}-{'' if end is None else f'{end:g}'}"
        item = Item(digest[:DIGITS] + part, clips=(ItemClip(path, start, end),))
        messages = [{"role": "user", "content": content(item, text(item, ""))}]
        ask = ask_of(CAPTIONS, item, messages, settings, asking.model, digests, digests.seconds)
        of[path, start, end] = found.setdefault(ask.key, ask)
    return Captions(list(found.values()), of, digests)


def text_asks(
    prepared: PreparedRun, captions: Captions, rows: Mapping[str, Mapping[str, Any]], text: AskSettings
) -> PreparedRun:
    """What the text model is asked: every question with descriptions where its recordings were.

    Args:
        prepared: the questions about recordings.
        captions: of the first pass.
        rows: the answers so far, which hold the captions.
        text: how the text model is asked; its ``model`` is as ``endpoint.served`` says it.

    Returns:
        the questions. One whose captions have failed, or are not there yet, has that as its problem.
    """
    found = PreparedRun(problems=dict(prepared.problems), unreadable=dict(prepared.unreadable))
    for name, asks in prepared.asks.items():
        found.asks[name] = [_text_ask(ask, captions, rows, text) for ask in asks]
    return found


def _text_ask(ask: Ask, captions: Captions, rows: Mapping[str, Mapping[str, Any]], text: AskSettings) -> Ask:
    said, problem = list[str](), ask.problem
    numbers: dict[Key, int] = {}
    for message in ask.messages:
        for part in message["content"]:
            if part.get("type") != "audio":
                said.append(part["text"])
                continue
            key = (part["path"], part.get("start"), part.get("end"))
            number = numbers.setdefault(key, len(numbers) + 1)
            try:
                seconds = captions.digests.seconds(*key)
                said.append(f"{described(_caption(key, captions, rows), number, seconds)}\n")
            except ValueError as error:
                problem = problem or str(error)
    messages = [{"role": "user", "content": [{"type": "text", "text": "".join(said)}]}]
    settings = text.generation_of(ask.row)
    return ask_of(ask.row, ask.item, messages, settings, text.model, captions.digests, problem=problem)


def _caption(key: Key, captions: Captions, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the model has said of a recording.

    Raises:
        ValueError: nothing, and why.
    """
    if key not in captions.of:
        why = captions.digests.problems.get(key[0], f"{key[0]}: cannot be read")
        raise ValueError(f"no caption: {why}")
    row = rows.get(captions.of[key].key, {})
    if row.get("error"):
        raise ValueError(f"no caption: {key[0]}: {row['error'].get('message', 'an error')}")
    if "answer" not in row:
        raise ValueError(f"no caption yet: {key[0]}; the same command goes on when all shares have described theirs")
    caption = answer_in(row["answer"])
    if not caption:
        raise ValueError(f"no caption: {key[0]}: the model said nothing")
    return caption


def questions_by_now(prepared: PreparedRun, out: str | Path, asking: AskSettings, text: AskSettings) -> PreparedRun:
    """The text model's questions from the captions that a folder has, for ``answers_of``; nobody is asked. Arguments as
    of ``answer_by_captions``."""
    return text_asks(prepared, caption_asks(prepared, out, asking), read_answers(out), text)


def answer_by_captions(
    prepared: PreparedRun,
    out: str | Path,
    asking: AskSettings,
    text: AskSettings,
    hearing: Callable[[Path], Workers],
    reading: Callable[[Path], Workers],
    *,
    share: Share | None = None,
    together: int = 64,
    on_progress: Callable[[BatchProgress], Any] | None = None,
) -> tuple[PreparedRun, BatchProgress, BatchProgress]:
    """Both passes.

    Args:
        prepared: of ``prepare``, by an asking of the variant "captioner".
        out: the run's folder.
        asking: how the model describes.
        text: how the text model answers.
        hearing, reading: make what describes and what answers, as ``workers`` of ``run``.
        share, together, on_progress: of ``run``.

    Returns:
        the text model's questions, for ``answers_of``; what was done in the first pass; what in the second.
    """
    options = {"share": share, "together": together, "on_progress": on_progress}
    captions = caption_asks(prepared, out, asking)
    first = run(captions.asks, out, hearing, **options)
    questions = text_asks(prepared, captions, read_answers(out), text)
    second = run([ask for asks in questions.asks.values() for ask in asks], out, reading, **options)
    return questions, first, second
