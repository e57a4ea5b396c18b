"""What is asked of a model: each item of a benchmark as a line of a batch, under a key that says all it depends on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from afn_model.checks import said
from afn_model.eval.items import Item
from afn_model.eval.prompts import PROMPTS, content
from afn_model.eval.table import BenchmarkRow
from afn_model.files import fingerprint_of
from afn_model.prompt.questions import THINK

DIGITS = 16  # hexadecimal, of a key


@dataclass(frozen=True)
class AskSettings:
    """How all items of a run are asked.

    Args:
        model: what answers: {"name", "weights": digest, "dtype", ...}; no path. The name counts where nothing else is
            known of the weights.
        variant: "instruct", "think" or "captioner", one of ``table.VARIANTS``: whose numbers of the paper are meant.
            "think" asks for reasoning.
        prompt: "" for the prompt of the table, "official" for that of the authors, or a key of ``prompts.PROMPTS``.
        generation: settings in the place of the table's, as a line of a batch says them.
        seed: of random answers, and of ablations.
        ablation: "" or a key of ``ablations.ABLATIONS``.
        deterministic: an answer's bits depend on its line alone.
    """

    model: Mapping[str, Any]
    variant: str = "instruct"
    prompt: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    ablation: str = ""
    deterministic: bool = True

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, told: Any, where: Any) -> AskSettings:
        """What ``as_json`` has said; ValueError that names ``where`` it stands if it is something else."""
        try:
            return cls(**told)
        except TypeError as error:
            what = f"it is of another version of afn bench, which can score it ({said(error)})"
            raise ValueError(f"{where}: {what}") from None

    def prompt_of(self, row: BenchmarkRow) -> str:
        """The key of the prompt for a benchmark.

        Raises:
            ValueError: there is no such prompt.
        """
        found = self.prompt or row.prompt
        if found == "official":
            found = row.official_prompt or row.prompt
        if found not in PROMPTS:
            raise ValueError(f"{found}: no such prompt; there are official, {', '.join(PROMPTS)}")
        return found

    def generation_of(self, row: BenchmarkRow) -> dict[str, Any]:
        most = 4096 if self.variant == "think" else 1024
        found = {"max_tokens": most, "temperature": 0.0, "seed": self.seed} | row.generation | dict(self.generation)
        if found.get("n", 1) != 1:
            raise ValueError(f"n is {found['n']}: an item has one answer")
        return found


@dataclass(frozen=True)
class Ask:
    """A line for one item.

    Args:
        key: "benchmark/item/digest", the digest being over what an answer depends on: the benchmark's version, the
            item, the bytes of its recordings, the text, the model and how it generates. No path is in it.
        row, item: what it is about.
        messages: of the conversation, with recordings as parts.
        settings: of the answer.
        seconds: of its recordings; 0 where they are not known.
        problem: why nobody is asked; "" for all that can be asked.
    """

    key: str
    row: BenchmarkRow
    item: Item
    messages: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    seconds: float = 0.0
    problem: str = ""

    def record(self) -> dict[str, Any]:
        """The line of a batch."""
        duration = {"duration": self.seconds} if self.seconds else {}
        return {"id": self.key, "messages": [dict(message) for message in self.messages], **duration, **self.settings}


def asks_of(
    row: BenchmarkRow,
    items: Sequence[Item],
    asking: AskSettings,
    digest: Callable[[str], str],
    seconds: Callable[..., float] | None = None,
) -> Iterator[Ask]:
    """The lines for a benchmark's items.

    Args:
        row: of the table.
        items: of the benchmark, or of an ablation of it.
        asking: how they are asked.
        digest: path of a recording -> digest of its bytes.
        seconds: (path, start, end) of a recording -> its length, as ``ClipDigests.seconds``; without it lengths are
            measured when the lines are answered.

    Raises:
        ValueError: a prompt or a setting that cannot be.
    """
    name, settings = asking.prompt_of(row), asking.generation_of(row)
    for item in items:
        text, problem = item.question, ""
        try:
            text = PROMPTS[name](item, row.language)
            if asking.variant == "think":
                text = f"{text}\n{THINK}"
            parts = content(item, text)
        except ValueError as error:
            parts, problem = [{"type": "text", "text": text}], str(error)
        messages = [{"role": "user", "content": parts}]
        yield ask_of(row, item, messages, settings, asking.model, digest, seconds, problem)


def ask_of(
    row: BenchmarkRow,
    item: Item,
    messages: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    model: Mapping[str, Any],
    digest: Callable[[str], str],
    seconds: Callable[..., float] | None = None,
    problem: str = "",
) -> Ask:
    """A line with its key; arguments as of ``Ask`` and ``asks_of``."""
    told = [{**message, "content": [_told(part, digest) for part in message["content"]]} for message in messages]
    who = {name: value for name, value in model.items() if name != "name" or "weights" not in model}
    parts = [row.name, row.version, item.id, told, _plain(settings), who]
    if problem:
        parts.append(problem)
    found = fingerprint_of([json.dumps(parts, sort_keys=True)])[:DIGITS]
    lengths = [0.0 if seconds is None else seconds(*clip) for clip in clips_of(messages)]
    total = round(sum(lengths), 3) if all(lengths) else 0.0
    return Ask(f"{row.name}/{item.id}/{found}", row, item, messages, settings, total, problem)


def clips_of(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, float | None, float | None]]:
    """(path, start, end) of the recordings of a conversation, each once."""
    parts = (part for message in messages for part in message["content"] if part.get("type") == "audio")
    return list(dict.fromkeys((part["path"], part.get("start"), part.get("end")) for part in parts))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """0.0 and 0 are one setting."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in settings.items()
    }


def _told(part: Mapping[str, Any], digest: Callable[[str], str]) -> Mapping[str, Any]:
    if part.get("type") != "audio":
        return part
    return {**part, "path": digest(part["path"])}
