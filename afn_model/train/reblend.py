"""Rules by which a stage's blend follows the losses of held-out sets; numbers alone, no tensors.

A rule works on shares of an epoch's samples. Dataset i of n_i records that is seen β_i times per epoch has the share
p_i = β_i · n_i / N, N = Σ β_i · n_i, and q_i is its share in the stage's own blend. From the held-out losses ℓ_i a rule
makes new shares p'_i, of which

    p_i ← (1 − floor) · p'_i + floor · q_i,    β_i ← p_i · N / n_i,

so an epoch keeps its N samples, up to the rounding of each dataset's, and no dataset falls below ``floor`` times its
own β. Where the sources mix with the uniform distribution, these mix with the stage's own blend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from afn_model.checks import is_number, is_whole
from afn_model.train.values import known, mapping, shown

LEAST = 1e-9  # of a loss, whose logarithm is taken
ROUNDED = 1e-9  # of a share
Shares = dict[str, float]


def fixed(settings: Reblend, own: Shares, shares: Shares, losses: Shares, before: Shares | None) -> Shares | None:
    """No change: the losses are measured and written down, as references for ``doremi``."""


def by_loss(settings: Reblend, own: Shares, shares: Shares, losses: Shares, before: Shares | None) -> Shares:
    """p'_i ∝ q_i · ℓ_i^η: samples of the stage's own blend, each with the loss of its dataset for a priority.

    Sources: Mineiro and Karampatziakis, 2013, Loss-proportional subsampling, arXiv:1306.1840 (η = 1, by sample and
    with importance weights, which are left out here: the blend is meant to change what is learnt); Schaul et al., 2015,
    Prioritized experience replay, arXiv:1511.05952 (the exponent).
    """
    return softmax({name: math.log(q) + settings.rate * math.log(max(losses[name], LEAST)) for name, q in own.items()})


def doremi(settings: Reblend, own: Shares, shares: Shares, losses: Shares, before: Shares | None) -> Shares:
    """p'_i ∝ p_i · exp(η · max(ℓ_i − r_i, 0)), r_i the loss of a reference run.

    Sources: Xie et al., 2023, DoReMi, arXiv:2305.10429, where the losses are of training and the mean of the shares of
    a small proxy is the blend of another run; Xia et al., 2023, Sheared LLaMA, arXiv:2310.06694, which changes the
    blend of the run itself by held-out losses, as here.
    """
    excess = {name: max(losses[name] - settings.reference[name], 0.0) for name in shares}
    return softmax({name: math.log(p) + settings.rate * excess[name] for name, p in shares.items()})


def bandit(settings: Reblend, own: Shares, shares: Shares, losses: Shares, before: Shares | None) -> Shares | None:
    """p'_i ∝ p_i · exp(η · r_i), r_i = (d_i / p_i) / max_j |d_j / p_j|, d_i the fall of ℓ_i since the last time.

    Exp3 with the shares for its policy. Between two measurements a dataset is drawn in proportion to p_i, so d_i / p_i
    is the sum of its rewards over their probabilities: what a sample of it is worth. Nothing changes before there are
    two measurements, or where no loss has moved.

    Source: Graves et al., 2017, Automated curriculum learning, arXiv:1704.03003: Exp3.S by the progress on held-out
    samples of the task itself, scaled to −1 … 1 (there by quantiles of all rewards so far).
    """
    if before is None:
        return None
    worth = {name: (before[name] - losses[name]) / p for name, p in shares.items()}
    most = max(map(abs, worth.values()))
    if not most:
        return None
    return softmax({name: math.log(p) + settings.rate * worth[name] / most for name, p in shares.items()})


Rule = Callable[["Reblend", Shares, Shares, Shares, "Shares | None"], "Shares | None"]
RULES: dict[str, Rule] = {"loss": by_loss, "doremi": doremi, "bandit": bandit, "fixed": fixed}


@dataclass(frozen=True)
class Reblend:
    """How the blend of a stage follows its held-out losses.

    Args:
        rule: loss, doremi, bandit, or fixed, which measures and changes nothing.
        held: name of each dataset of the blend → a dataset of the curriculum, or the path of an indexed corpus, with
            held-out records of its kind.
        every: optimiser steps between changes.
        rate: η of the rule.
        floor: share of its own β that a dataset keeps at least.
        samples: records of each held-out set that are used at most, evenly drawn and always the same.
        reference: of doremi, name of each dataset → held-out loss to reach.
    """

    rule: str
    held: dict[str, str]
    every: int = 100
    rate: float = 1.0
    floor: float = 0.1
    samples: int = 200
    reference: dict[str, float] = field(default_factory=dict)

    def due(self, step: int, last: bool) -> bool:
        """Whether losses are measured after so many steps, ``last`` at the stage's end; a bandit's also before the
        first one."""
        return last or (step % self.every == 0 and (step > 0 or self.rule == "bandit"))

    def blend(
        self,
        own: Mapping[str, float],
        now: Mapping[str, float],
        records: Mapping[str, int],
        losses: Mapping[str, float],
        before: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """β of each dataset from now on.

        Args:
            own: β of the stage's blend.
            now: β until now; of the same datasets, as all the others.
            records: of each dataset.
            losses: held-out loss of each that has a β above 0; finite.
            before: the same when it was last measured; None the first time.
        """
        total = sum(own[name] * records[name] for name in own)
        q = {name: own[name] * records[name] / total for name in losses}
        p = {name: now[name] * records[name] / total for name in losses}
        found = RULES[self.rule](self, q, p, dict(losses), None if before is None else dict(before))
        if found is None:
            return dict(now)
        mixed = {name: (1 - self.floor) * found[name] + self.floor * q[name] for name in losses}
        if all(math.isclose(mixed[name], p[name], rel_tol=ROUNDED) for name in losses):
            return dict(now)  # an order of its own for what rounding alone has changed would read some records twice
        return {name: mixed[name] * total / records[name] if name in mixed else beta for name, beta in now.items()}


def softmax(logits: Mapping[str, float]) -> Shares:
    """exp(x_i) / Σ exp(x_j)."""
    most = max(logits.values())
    powers = {name: math.exp(logit - most) for name, logit in logits.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}


def reblend_settings(raw: Mapping[str, Any], what: str, blend: Mapping[str, float]) -> Reblend | None:
    """The settings of a stage's ``reblend``, None where it is empty.

    Args:
        raw: its fields.
        what: to name it by in messages.
        blend: the stage's β.

    Raises:
        ValueError: an unknown field, a value out of range, a dataset without held-out records or reference.
    """
    raw = mapping(raw, what)
    if not raw:
        return None
    known(raw, (f.name for f in fields(Reblend)), what)

    def need(condition: bool, key: str, expected: str) -> None:
        if not condition:
            raise ValueError(f"{what}: {key} is {shown(raw.get(key))}; {expected} is expected")

    need(raw.get("rule") in list(RULES), "rule", f"one of {', '.join(RULES)}")
    for key in ("every", "samples"):
        need(key not in raw or (is_whole(raw[key]) and raw[key] >= 1), key, "a whole number from 1")
    rate, floor = raw.get("rate", 1), raw.get("floor", Reblend.floor)
    need(is_number(rate) and 0 < rate < math.inf, "rate", "a number above 0")
    need(is_number(floor) and 0 < floor <= 1, "floor", "a share above 0 and up to 1")
    seen = {name for name, beta in blend.items() if beta > 0}
    given = {"held": lambda x: isinstance(x, str) and bool(x)}
    if raw["rule"] == "doremi":
        given["reference"] = lambda x: is_number(x) and math.isfinite(x)
    else:
        need(not raw.get("reference"), "reference", "nothing but for doremi")
    for key, fits in given.items():
        values = mapping(raw.get(key), f"{what}: {key}")
        wrong = seen.symmetric_difference(values)
        if wrong:
            raise ValueError(f"{what}: {key} names {shown(sorted(values))}; the blend sees {shown(sorted(seen))}")
        for name, value in values.items():
            if not fits(value):
                expected = "a dataset or a path" if key == "held" else "a loss"
                raise ValueError(f"{what}: {key}: {name} is {shown(value)}; {expected} is expected")
    return Reblend(**raw)
