"""The rewards of sampled answers: by rule, by the judge, and by functions of one's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from afn_model.data.records import Sample, audios_of
from afn_model.infer.rollout import Rollout
from afn_model.scoring import rewards
from afn_model.scoring.judge import Endpoint, GradeRequest, Judge
from afn_model.scoring.own import OwnReward, Unanswered, is_reward
from afn_model.train.grpo_settings import MOST_TIMEOUT, GRPOSettings
from afn_model.train.passes import asked
from afn_model.train.values import made, mapping

COUNTS = ("judge_asked", "judge_failed", "own_asked", "own_failed")


@dataclass
class Graded:
    """The rewards of a prompt's answers.

    Args:
        texts: of the answers.
        totals: weighted mean of each answer's rewards; None where a function of one's own gave the group none.
        by_kind: each answer's rewards.
    """

    texts: list[str]
    totals: list[float] | None
    by_kind: list[dict[str, float]] = field(default_factory=list)


def usable_rewards(sample: Sample, settings: GRPOSettings) -> list[dict]:
    """The rewards of a sample that can be found: those of a judge only where there is one.

    Raises:
        ValueError: none, or a function that the settings do not name.
    """
    found = [spec for spec in sample.rewards if settings.judge or spec.get("kind") != rewards.JUDGE]
    if not found:
        raise ValueError("no rewards" + (" without a judge" if sample.rewards else ""))
    for spec in found:
        if spec.get("kind") == rewards.PYTHON and spec["function"] not in settings.functions:
            raise ValueError(f"reward function {spec['function']} is not among the functions of the stage's settings")
    return found


class Grader:
    """Finds the rewards of answers.

    Args:
        settings: the judge and the functions that may be asked.
        decode: token ids to text.

    Raises:
        ValueError: a judge that is not an endpoint; more time for judge and functions than other ranks wait.
    """

    def __init__(self, settings: GRPOSettings, decode: Callable[[Any], str]):
        self.settings, self.decode = settings, decode
        judge = mapping(settings.judge, "judge")
        endpoint = made(Endpoint, judge, "judge") if judge else None
        self.judge = None if endpoint is None else Judge(endpoint)
        # One after another, and meanwhile the other ranks wait.
        longest = len(set(settings.functions)) * settings.reward_timeout
        longest += 0.0 if endpoint is None else endpoint.deadline
        if longest > MOST_TIMEOUT:
            raise ValueError(
                f"judge and functions may take {longest:g} s in a step, but the other ranks wait {MOST_TIMEOUT:g} s: "
                "lower the judge's deadline or reward_timeout"
            )
        self.own: dict[str, OwnReward] = {}
        self.counts = dict.fromkeys(COUNTS, 0)
        self.last_failure = ""

    @property
    def asks_others(self) -> bool:
        """Whether grading can fail for reasons that are no answer's."""
        return self.judge is not None or len(self.settings.functions) > 0

    def grade(self, samples: Sequence[Sample], rollouts: Sequence[Sequence[Rollout]]) -> list[Graded]:
        """The rewards of the answers to each sample's prompt; ``counts`` is then of this call."""
        return self.grade_texts(samples, [[self.decode(one.answer) for one in group] for group in rollouts])

    def grade_texts(self, samples: Sequence[Sample], texts: Sequence[list[str]]) -> list[Graded]:
        """The same of answers that are texts."""
        self.counts = dict.fromkeys(COUNTS, 0)
        found = [Graded(group, []) for group in texts]
        specs = [usable_rewards(sample, self.settings) for sample in samples]
        judged = self.judged(samples, specs, found)
        own = self.called(samples, specs, found)
        for graded, its_specs, its_grades, its_own in zip(found, specs, judged, own, strict=True):
            if its_own is None:
                graded.totals = None
                continue
            for answer, text in enumerate(graded.texts):
                values = [column[answer] for column in its_own]
                by_kind = rewards.reward(text, its_specs, [column[answer] for column in its_grades], values)
                graded.by_kind.append(by_kind)
                graded.totals = [*(graded.totals or ()), rewards.total(by_kind, its_specs)]
        return found

    def judged(
        self, samples: Sequence[Sample], specs: list[list[dict]], found: list[Graded]
    ) -> list[list[list[float]]]:
        """The grades of each group, [specification][answer]; none where one answer of the group got no grade, since
        advantages are relative within the group."""
        cases, places = [], []
        for place, (sample, its_specs, graded) in enumerate(zip(samples, specs, found, strict=True)):
            for spec in its_specs:
                if spec["kind"] == rewards.JUDGE:
                    cases += [GradeRequest(asked(sample), text, spec["rubric"]) for text in graded.texts]
                    places.append(place)
        given = self.judge.grades(cases) if self.judge is not None and cases else []
        self.counts["judge_asked"] = len(cases)
        self.counts["judge_failed"] = sum(grade is None for grade in given)
        grades: list[list[list[float]]] = [[] for _ in found]
        failed, at = set(), 0
        for place in places:
            column = given[at : at + len(found[place].texts)]
            at += len(column)
            grades[place].append([grade for grade in column if grade is not None])
            if None in column:
                failed.add(place)
        return [[] if place in failed else columns for place, columns in enumerate(grades)]

    def called(
        self, samples: Sequence[Sample], specs: list[list[dict]], found: list[Graded]
    ) -> list[list[list[float]] | None]:
        """What the functions return for each group, [specification][answer]; None where one of them failed."""
        columns: dict[tuple[int, int], list[float]] = {}
        wanted: dict[str, list[tuple[int, int]]] = {}
        for place, its_specs in enumerate(specs):
            for number, spec in enumerate(its_specs):
                if spec["kind"] == rewards.PYTHON:
                    wanted.setdefault(spec["function"], []).append((place, number))
        for function, keys in wanted.items():
            rows = {
                key: [
                    (asked(samples[key[0]]), text, described(samples[key[0]], specs[key[0]][key[1]]))
                    for text in found[key[0]].texts
                ]
                for key in keys
            }
            columns |= self.call(function, rows)
        own: list[list[list[float]] | None] = []
        for place, its_specs in enumerate(specs):
            keys = [(place, number) for number, spec in enumerate(its_specs) if spec["kind"] == rewards.PYTHON]
            self.counts["own_asked"] += len(keys) > 0
            failed = any(key not in columns for key in keys)
            self.counts["own_failed"] += failed
            own.append(None if failed else [columns[key] for key in keys])
        return own

    def call(self, function: str, rows: dict[Any, list[tuple[str, str, dict]]]) -> dict[Any, list[float]]:
        """A function's rewards by group, all groups in one call; where that fails, those of the groups it can score."""
        score = self.own.setdefault(function, OwnReward(function))
        ends = time.monotonic() + self.settings.reward_timeout

        def ask(keys: list[Any]) -> list[float]:
            prompts, texts, about = zip(*(row for key in keys for row in rows[key]), strict=True)
            return score(prompts, texts, about, timeout=max(ends - time.monotonic(), 0.0))

        found: dict[Any, list[float]] = {}
        try:
            values = iter(ask(list(rows)))
            found = {key: [next(values) for _ in own] for key, own in rows.items()}
        except Unanswered as error:
            self.last_failure = str(error)
        except ValueError as error:
            self.last_failure = str(error)
            for key in rows if len(rows) > 1 else ():
                try:
                    found[key] = ask([key])
                except Unanswered as error:
                    self.last_failure = str(error)
                    break
                except ValueError as error:
                    self.last_failure = str(error)
        for key, values in list(found.items()):
            if not all(map(is_reward, values)):
                self.last_failure = f"reward {function}: {values!r:.60} are not all finite"
                del found[key]
        return found

    def require(self, counts: Sequence[float]) -> None:
        """Ends the run where others failed too often, before weights change.

        Args:
            counts: ``COUNTS`` of a step, over all ranks.

        Raises:
            ValueError: the judge graded no answer, or functions of one's own failed for more than half of the groups.
        """
        judge_asked, judge_failed, own_asked, own_failed = map(int, counts)
        if self.judge is not None and judge_failed == judge_asked > 0:
            raise ValueError(f"the judge graded none of {judge_asked} answers: {self.judge.last_failure}")
        if 2 * own_failed > own_asked:
            raise ValueError(
                f"{own_failed} of {own_asked} prompts got no reward of one's own: "
                + (self.last_failure or "on other ranks")
            )

    def close(self) -> None:
        """Ends the functions' processes."""
        for score in self.own.values():
            score.close()


def described(sample: Sample, spec: dict) -> dict[str, Any]:
    """What a function of one's own is told about a sample besides question and answer."""
    paths = [
        {"path": audio.source if isinstance(audio.source, str) else None, "start": audio.start, "end": audio.end}
        for audio in audios_of(sample)
    ]
    fields = ("id", "axis", "task", "source", "seconds", "truth")
    return {name: getattr(sample, name) for name in fields} | {"reward": spec, "recordings": paths}
