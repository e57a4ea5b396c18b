"""Audio entailment: F1, the authors' metric (microsoft/AudioEntailment@5b8b59f). Audio Flamingo reports accuracy,
which is the rule of choices."""

from __future__ import annotations

from collections.abc import Sequence

from afn_model.eval.items import AnsweredItem
from afn_model.eval.rules.extract import chosen
from afn_model.eval.score import Part, Score, Tools


def f1(answered: Sequence[AnsweredItem], tools: Tools) -> Score:
    """Macro F1 in percent: the mean over classes c of F_c = 2·TP_c ÷ (P_c + G_c), P_c being how many outputs say c and
    G_c how many items are c. An output that says none is a miss of its class and of no other. "f1: neutral" and so on
    are those of the classes.

    Which average the authors' F1 is they do not say; as every class is equally frequent, macro and weighted are one
    number, and micro is accuracy. An item's part is the mean plus what the item changes in it to first order,
    n · Σ_c (2·tp − F_c · (p + g)) ÷ (P_c + G_c) ÷ C: the mean of the parts is F1, and a bootstrap of them is that of
    the linearised F1.
    """
    told = [(place, one) for place, one in enumerate(answered) if one.item.answer is not None]
    found = [chosen(one.text or "", one.item.choices) for _, one in told]
    pairs = zip(found, told, strict=True)
    said = [None if one.choice is None else answer.item.choices[one.choice] for one, (_, answer) in pairs]
    gold = [one.item.answer for _, one in told]
    classes = list(dict.fromkeys(gold))
    values, shares = [], [0.0] * len(told)
    groups: dict[str, tuple[float, int]] = {}
    for name in classes:
        counts = [(s == g == name, s == name, g == name) for s, g in zip(said, gold, strict=True)]
        both, says, is_ = (sum(column) for column in zip(*counts, strict=True))
        value = 2 * both / (says + is_)
        values.append(value)
        groups[f"f1: {name}"] = (100 * value, is_)
        for place, (hit, p, g) in enumerate(counts):
            shares[place] += (2 * hit - value * (p + g)) / (says + is_) / len(classes)
    mean = sum(values) / len(values) if values else float("nan")
    parts: list[Part | None] = [None] * len(answered)
    for (place, _), share in zip(told, shares, strict=True):
        parts[place] = (mean + len(told) * share, 1.0)
    read = ["none" if name is None else name for name in said]
    notes = ["macro F1 over the classes; the authors do not say which average theirs is"]
    unparsed = sum(name is None and one.text is not None for name, (_, one) in zip(said, told, strict=True))
    told = {"extracted": read, "signature": "macro F1, named extraction rules", "notes": notes}
    return Score(100 * mean, parts, groups, 100, unparsed, **told)
