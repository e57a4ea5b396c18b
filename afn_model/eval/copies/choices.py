"""Copies of benchmarks with options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from afn_model.eval.copies.sounds import NAMES, Sounds, save


def mmau(folder: Path, sounds: Sounds) -> None:
    """Choices as a list and as a string, an id given twice, an answer that is no choice, a recording that is absent, and
    a test split whose answers are hidden."""
    rows: list[dict[str, Any]] = []
    for number in range(5):
        name = sounds.pick(NAMES)
        choices = [name, *sounds.others(NAMES, name, 3)]
        sounds.random.shuffle(choices)
        audio = f"./test-mini-audios/{number}.wav"
        save(folder / audio, sounds.sound(name))
        rows.append(
            {
                "id": f"copy-{max(0, number - 1)}",
                "audio_id": audio,
                "question": "Which sound do you hear?",
                "choices": json.dumps(choices) if number == 2 else choices,
                "answer": f"a {name}" if number == 3 else name,
                "dataset": "copy",
                "task": "sound",
                "split": "test-mini",
                "category": "Reasoning",
                "sub-category": "Acoustic Source Inference",
                "difficulty": ("easy", "medium", "hard")[number % 3],
            }
        )
    (folder / "mmau-test-mini.json").write_text(json.dumps(rows, indent=2), "utf-8")
    hidden = [{name: value for name, value in row.items() if name != "answer"} | {"split": "test"} for row in rows]
    (folder / "mmau-test.json").write_text(json.dumps(hidden, indent=2), "utf-8")
