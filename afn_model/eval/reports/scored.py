"""What the rules of each benchmark say of a run's answers, and whether the paper's number may stand beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from afn_model import checks
from afn_model.eval import rules
from afn_model.eval.items import AnsweredItem, Item
from afn_model.eval.running.ablations import Rotations, rotations
from afn_model.eval.score import Part, RuleError, Score, Tools, interval, quotient
from afn_model.eval.table import BenchmarkRow

NAN = float("nan")
READER = "GPT-5.2"  # the paper's text model of the variant "captioner"
OWN_WORDING = "own wording"  # in signatures of judges whose prompts are not their authors'
CHANGES = ("adapter", "quantize", "rote", "system")  # of a model, as ``AskSettings.model`` tells them
ROTATION = "rotation"  # the group that the ablation of turned options gives its items


@dataclass
class RuleResult:
    """What one scorer of the table says.

    Args:
        name, rule: of the scorer.
        score: None where the rule cannot be used here.
        reason: why it cannot.
        interval: 95 %, recordings drawn.
        bounds: the score with items without an output as wrong, and without these items; None where all have one.
    """

    name: str
    rule: str
    score: Score | None = None
    reason: str = ""
    interval: tuple[float, float] = (NAN, NAN)
    bounds: tuple[float, float] | None = None

    @property
    def value(self) -> float:
        return self.score.value if self.score else NAN

    @property
    def ungraded(self) -> int:
        """Answers that a judge gave no grade."""
        return self.score.ungraded if self.score else 0

    @property
    def heard(self) -> float:
        """The score of the items that have an output."""
        return self.bounds[1] if self.bounds else self.value

    def of(self, group: str) -> float:
        """The score, "all", or a sub-score by its name."""
        if group == "all" or self.score is None:
            return self.value
        return self.score.groups.get(group, (NAN, 0))[0]

    @property
    def unparsed(self) -> float:
        """Percent of the items."""
        return 100 * self.score.unparsed / len(self.score.parts) if self.score and self.score.parts else NAN


@dataclass
class BenchmarkResult:
    """A benchmark's answers and what its scorers say of them; the first scorer's number is the one that the paper's is
    compared with."""

    row: BenchmarkRow
    answered: Sequence[AnsweredItem]
    results: list[RuleResult]

    @property
    def first(self) -> RuleResult:
        return self.results[0]

    @property
    def errors(self) -> int:
        return sum(bool(one.error) for one in self.answered)

    @property
    def unasked(self) -> int:
        return sum(one.text is None and not one.error for one in self.answered)

    @property
    def hidden(self) -> int:
        return self.row.hidden * sum(one.item.answer is None for one in self.answered)

    def ended(self, finish: str) -> int:
        """Answers that ended in a way: "stop", "length" or "repetition"."""
        return sum(one.finish == finish for one in self.answered)

    def disagreements(self) -> list[tuple[str, str, float]]:
        """(scorer, scorer, difference) where the first and another that measures the same differ by more than a point,
        or a hundredth of the scale."""
        first, found = self.first, []
        for other in self.results[1:]:
            same = other.name == "strict" or other.rule == first.rule
            gap = other.heard - first.heard
            if same and abs(gap) > span(self.row.metric) / 100:
                found.append((first.name, other.name, gap))
        return found


@dataclass
class Scores:
    """All benchmarks of a run.

    Args:
        benchmarks: results by name.
        problems: benchmark -> why there are no questions of it.
        tools: what the rules had.
    """

    benchmarks: dict[str, BenchmarkResult]
    problems: Mapping[str, str] = field(default_factory=dict)
    tools: Tools = field(default_factory=Tools)

    @property
    def answered(self) -> bool:
        """Every item that was found has an answer; without, there are ranges in the place of scores."""
        return not any(result.errors or result.unasked for result in self.benchmarks.values())

    @property
    def complete(self) -> bool:
        """All benchmarks were asked, and every item has an answer."""
        return self.answered and not self.problems


@dataclass(frozen=True)
class RunFacts:
    """What a report says of the run itself.

    Args:
        asking: how the items were asked, as ``AskSettings.as_json`` has it.
        prompts: benchmark -> key of its prompt.
        data: the data folder.
        limit: of items of each benchmark.
        reader: the text model that answers from captions, in the variant "captioner".
        hours, audio_hours, answers: of all processes that have ended.
        code: commit or version.
        copies: benchmarks whose rows are synthetic.
        other_files: benchmark -> files that are not those that the table knows.
        unreadable: recordings, and why.
        submissions: benchmark -> file to hand in, in the run's folder.
    """

    asking: Mapping[str, Any]
    prompts: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    limit: int | None = None
    reader: str = ""
    hours: float = 0.0
    audio_hours: float = 0.0
    answers: int = 0
    code: str = ""
    copies: frozenset[str] = frozenset()
    other_files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    submissions: Mapping[str, str] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        return self.asking.get("variant", "instruct")


def scored(
    rows: Sequence[BenchmarkRow],
    answered: Mapping[str, Sequence[AnsweredItem]],
    tools: Tools,
    problems: Mapping[str, str] | None = None,
) -> Scores:
    """Scores every benchmark by all of its scorers.

    Args:
        rows: of the table.
        answered: items with their answers by benchmark; a row without any is left out.
        tools: of the rules. What lacks one has a reason in the place of a number.
        problems: why a benchmark has no items.
    """
    found = {}
    for row in rows:
        if some := answered.get(row.name):
            found[row.name] = BenchmarkResult(row, some, [_by(row, some, entry, tools) for entry in row.scorers])
    return Scores(found, dict(problems or {}), tools)


def _by(row: BenchmarkRow, answered: Sequence[AnsweredItem], scorer: dict[str, Any], tools: Tools) -> RuleResult:
    result = RuleResult(scorer["name"], scorer["rule"])
    try:
        score = rules.score(answered, scorer, tools)
        result.score, result.interval = score, interval(answered, score)
        heard, without = [one for one in answered if one.text is not None], score.value
        if len(heard) < len(answered):
            without = rules.score(heard, scorer, tools).value if heard else NAN
        if len(heard) < len(answered) or result.ungraded:
            result.bounds = _all_wrong(row, answered, scorer, tools, result), without
    except RuleError as error:
        result.score, result.reason = None, str(error)
    except Exception as error:  # of a library that an answer is too strange for: all else is scored
        result.score, result.reason = None, f"the rule failed, {type(error).__name__}: {checks.said(error)}"
    return result


def _all_wrong(
    row: BenchmarkRow, answered: Sequence[AnsweredItem], scorer: dict[str, Any], tools: Tools, result: RuleResult
) -> float:
    """The score with every item that has no output as wrong, also those that a rule leaves out or takes as right; what
    a judge gave no grade has the lowest one."""
    assert result.score is not None
    score = result.score
    parts, scale, floor = list[Part | None](score.parts), score.scale, score.floor
    missing = [place for place, one in enumerate(answered) if one.text is None]
    blank = [replace(one, text=one.text or "") for one in answered]
    if missing and not math.isclose(quotient(scored_parts(parts), scale), score.value, rel_tol=1e-6):
        return rules.score(blank, scorer, tools).value  # BLEU, macro F1: no ratio of sums
    if row.lower and any(parts[place] is None for place in missing):
        parts = list(rules.score(blank, scorer, tools).parts)
    for place in () if row.lower else missing:
        item, part = answered[place].item, parts[place]
        left_out = part is None and (item.answer is not None or bool(item.references))
        if left_out or (part is not None and part[0] > floor * part[1]):
            below = part[1] if part else 1.0
            parts[place] = (floor * below, below)
    parts += [(floor, 1.0)] * result.ungraded
    return quotient(scored_parts(parts), scale)


def scored_parts(parts: Sequence[Part | None]) -> list[Part]:
    return [part for part in parts if part is not None]


def ends(metric: str) -> tuple[float, float]:
    """Both ends of a metric's scale: 0 and 100 for percent and BLEU, 1 and 10 for "1-10", 0 and 1 else."""
    if found := re.search(r"(\d+)-(\d+)", metric):
        return float(found[1]), float(found[2])
    return 0.0, 100.0 if "%" in metric or "BLEU" in metric else 1.0


def span(metric: str) -> float:
    low, high = ends(metric)
    return high - low


def target(row: BenchmarkRow, who: str, group: str = "all") -> float:
    """A number of the paper: of "instruct", "think", "captioner", "af3" or "other"; NaN where it has none."""
    found = row.targets.get(who)
    if who == "other" and isinstance(found, Mapping):
        found = found.get("value")
    value = found.get(group) if isinstance(found, Mapping) else found if group == "all" else None
    return NAN if value is None else float(value)


def groups_of(result: BenchmarkResult) -> list[str]:
    """Sub-scores that a report shows: those of the row's groups, of the paper and of turned options."""
    names = dict.fromkeys(name for by in result.results if by.score for name in by.score.groups)
    asked = {*result.row.groups, ROTATION}
    told = {name for one in result.row.targets.values() if isinstance(one, Mapping) for name in one}
    return [name for name in names if name.partition(":")[0] in asked or name in told]


def turned(result: BenchmarkResult, by: RuleResult) -> Rotations | None:
    """A score over the orders in which options were given; None where these were not turned."""
    if by.score is None or not any(ROTATION in one.item.groups for one in result.answered):
        return None
    return rotations(result.answered, by.score, lower=result.row.lower)


def why_not(result: BenchmarkResult, facts: RunFacts, tools: Tools) -> list[str]:
    """Reasons why the paper's number says nothing about this one; [] where both were found in the same way."""
    row, first, said = result.row, result.first, []
    if row.name in facts.copies:
        said.append("the rows are synthetic and none of the benchmark's")
    if math.isnan(target(row, facts.variant)):
        what = "sub-scores alone" if row.targets.get(facts.variant) else "no number of it"
        said.append(f"the paper has {what} for the variant {facts.variant}")
    if first.score is None:
        said.append("there is no number by the rule that the paper's is compared with")
    elif not first.score.n:
        said.append("the answers are hidden" if result.hidden else "no item was scored")
    if row.items is None:
        said.append("how many items the official split has is not known")
    elif (found := questions(one.item for one in result.answered)) != row.items:
        said.append(f"{found:,} items are not the {row.items:,} of the official split")
    if files := facts.other_files.get(row.name):
        said.append(f"{', '.join(files)} is not the file that the authors published")
    if missing := result.errors + result.unasked:
        said.append(f"{missing:,} of {len(result.answered):,} items have no answer")
    if row.judge and tools.judge and not same_model(tools.judge.name, row.judge):
        said.append(f"the judge is {tools.judge.name or 'nobody'}, the paper's is {row.judge}")
    if row.judge and not tools.judge:
        said.append(f"there is no judge, the paper's is {row.judge}")
    if first.score and OWN_WORDING in first.score.signature:
        said.append("the judge is asked in our words")
    if ungraded := first.ungraded:
        said.append(f"the judge gave {ungraded:,} answers no grade")
    if facts.variant == "captioner" and not same_model(facts.reader, READER):
        said.append(f"{facts.reader or 'nobody'} answers from the captions, in the paper {READER}")
    prompt = facts.prompts.get(row.name, row.prompt)
    if prompt != row.prompt:
        said.append(f"the prompt is {prompt!r}, that of the released models {row.prompt!r}")
    if changed := facts.asking.get("generation"):
        said.append(f"{', '.join(sorted(changed))} of the generation was changed")
    model = facts.asking.get("model") or {}
    if told := [f"{name} {model[name]}" for name in CHANGES if name in model]:
        said.append(f"the model is not as it was released ({', '.join(told)})")
    if ablation := facts.asking.get("ablation"):
        said.append(f"the items were changed on purpose ({ablation})")
    if row.unknown:
        said.append(f"not published: {', '.join(one.rstrip('.') for one in row.unknown)}")
    return said


def questions(items: Iterable[Item]) -> int:
    """How many questions items are: some are asked several times, each of these items with ``extra["of"]``."""
    return len({item.extra.get("of", item.id) for item in items})


def same_model(one: str, other: str) -> bool:
    """Whether two names of a judge mean one model: "gpt-4o-2024-08-06" is "GPT-4o", "gpt-4o-mini" is not."""
    plain = [re.sub(r"-?\d{4}-\d\d-\d\d$", "", name.rpartition("/")[2].lower()) for name in (one, other)]
    return plain[0].replace(" ", "-") == plain[1].replace(" ", "-")


def verdict(result: BenchmarkResult, facts: RunFacts, tools: Tools) -> str:
    """One sentence: whether the number may be compared with the paper's, and what the comparison says."""
    if reasons := why_not(result, facts, tools):
        reasons = reasons[:1] if result.row.name in facts.copies else reasons  # which is reason enough
        return f"Not comparable with the paper: {'; '.join(reason.rstrip('.') for reason in reasons)}."
    paper, (low, high) = target(result.row, facts.variant), result.first.interval
    if low <= paper <= high:
        return f"The paper's number is reproduced: {paper:g} lies in the interval."
    better = (result.first.value > paper) != result.row.lower
    return f"Comparable with the paper: yes; {'better' if better else 'worse'} than its {paper:g}, beyond the interval."


def labels(rows: Iterable[BenchmarkRow]) -> dict[str, str]:
    """What people call each row: its title, with what its name adds where several share the title."""
    rows = list(rows)
    titles = [row.title for row in rows]
    common = {title: _stem([row.name for row in rows if row.title == title]) for title in titles}
    return {
        row.name: f"{row.title} ({row.name[len(common[row.title]) :]})" if titles.count(row.title) > 1 else row.title
        for row in rows
    }


def _stem(names: Sequence[str]) -> str:
    """The beginning, up to a "-", that names share."""
    first = names[0].split("-")
    shared = next((n for n in range(len(first), 0, -1) if all(x.split("-")[:n] == first[:n] for x in names)), 0)
    return "".join(f"{part}-" for part in first[:shared])


def number(value: float, metric: str, sign: str = "") -> str:
    """A number of a metric; "" where it is not known."""
    return f"{value:{sign},.{2 if span(metric) > 1 else 3}f}" if math.isfinite(value) else ""
