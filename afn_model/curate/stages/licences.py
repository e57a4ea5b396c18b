"""What may be done with a recording, by a table of licences: for training, and for passing on text and audio."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from afn_model.checks import said, shown
from afn_model.curate import identity
from afn_model.curate.plan import PLANS
from afn_model.curate.stage import Context, Dropped, Kept, Outcome, Resources, Row, Stage

USES = ("train", "annotations", "audio")
PURPOSES = ("research", "commercial")
UNKNOWN = "unknown"
_CC = re.compile(r"creativecommons\.org|creative commons|\bcc\b|\bcc ?0\b|^attribution\b")
_PARTS = (
    ("NC", re.compile(r"\bnc\b|non ?commercial")),
    ("SA", re.compile(r"\bsa\b|share ?alike")),
    ("ND", re.compile(r"\bnd\b|no ?deriv")),
)
_VERSION = re.compile(r"\b([1-4]\.[05])\b")


@dataclass(frozen=True)
class Licences(Stage):
    """Reads the licence of a recording and what it allows; drops what must not be used for what is wanted.

    ``uses`` = {"licence": its name, "train", "annotations", "audio": whether it is allowed}. What is unknown is denied.

    Args:
        policy: file of licences and spellings, such as plans/licences.yaml, which it is if empty.
        purpose: "research" or "commercial".
        needs: uses without which a recording is dropped.
    """

    name: ClassVar[str] = "licences"
    reads: ClassVar[tuple[str, ...]] = ("licence",)
    writes: ClassVar[tuple[str, ...]] = ("uses",)
    files: ClassVar[tuple[str, ...]] = ("policy",)
    drops: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources(batch=1000)

    policy: str = ""
    purpose: str = "commercial"
    needs: tuple[str, ...] = ("train",)

    def __post_init__(self):
        if self.purpose not in PURPOSES:
            raise ValueError(f"purpose is {' or '.join(PURPOSES)}, got {shown(self.purpose)}")
        check_uses(self.needs)
        read_policy(self.policy)

    def depends(self) -> Mapping[str, Any]:
        return {"policy": read_policy(self.policy).digest}

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        policy, found = read_policy(self.policy), list[Outcome]()
        for row in rows:
            uses = policy.uses(row.get("licence") or "", self.purpose)
            denied = [use for use in self.needs if not uses[use]]
            if denied:
                found.append(Dropped(f"licence denies {denied[0]}", uses["licence"]))
            else:
                found.append(Kept({"uses": uses}))
        return found


def check_uses(needs: Sequence[str]) -> None:
    """ValueError where one of them is no use that licences are asked about."""
    if unknown := [use for use in needs if use not in USES]:
        raise ValueError(f"needs are of {', '.join(USES)}, got {shown(unknown[0])}")


class Policy:
    """A table of licences.

    Args:
        told: {"licences": {name: {use: allow, deny or research}}, "spellings": {name: [other names]}}.

    Raises:
        ValueError: another shape, or an answer that is none.
    """

    def __init__(self, told: Any):
        self.digest = identity.of(told)
        if not isinstance(told, dict) or not isinstance(told.get("licences"), dict):
            raise ValueError("licences: {NAME: {train, annotations, audio}} are expected")
        self.licences: dict[str, dict[str, str]] = told["licences"]
        for name, uses in {UNKNOWN: dict.fromkeys(USES, "deny"), **self.licences}.items():
            answers = set(uses.values()) if isinstance(uses, dict) and set(uses) == set(USES) else {None}
            if not answers <= {"allow", "deny", "research"}:
                raise ValueError(f"{name}: {', '.join(USES)} are allow, deny or research, got {shown(uses)}")
        self.spellings = {plain(name): name for name in self.licences if name != UNKNOWN}
        for name, spelt in (told.get("spellings") or {}).items():
            self.spellings |= {plain(one): name for one in spelt}

    def licence(self, text: str) -> str:
        """The name of a licence: "CC-BY-NC-4.0"; "unknown" where it is none."""
        found = self.spellings.get(plain(text)) or creative_commons(text)
        return UNKNOWN if found is None else found

    def uses(self, text: str, purpose: str) -> dict[str, Any]:
        """{"licence", and for each use whether it is allowed}."""
        name = self.licence(text)
        family = _VERSION.sub("", name).rstrip("-")
        table = self.licences.get(name) or self.licences.get(family) or self.licences.get(UNKNOWN) or {}
        allowed = ("allow", "research") if purpose == "research" else ("allow",)
        return {"licence": name, **{use: table.get(use) in allowed for use in USES}}


def creative_commons(text: str) -> str | None:
    """The short name of a Creative Commons licence, of its address, its name or its initials; None for another."""
    told = re.sub(r"[\s_/\-,()]+", " ", text.lower())
    if not _CC.search(told):
        return None
    version = _VERSION.search(told)
    end = f"-{version[1]}" if version else ""
    if re.search(r"\bcc ?0\b|\bzero\b", told):
        return f"CC0{end}"
    if "publicdomain" in told or "public domain" in told:
        return "PUBLIC-DOMAIN"
    if not re.search(r"\bby\b|attribution", told):
        return None
    parts = [name for name, pattern in _PARTS if pattern.search(told)]
    return "-".join(["CC-BY", *parts]) + end


def plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9+]+(?:\.[a-z0-9]+)*", str(text).lower()))


def read_policy(path: str = "") -> Policy:
    """A policy from its file, this package's if empty; ValueError with one line where it is none."""
    where = Path(path) if path else PLANS / "licences.yaml"
    try:
        state = where.stat()
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}") from None
    return _read(where, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _read(path: Path, written: int, size: int) -> Policy:
    try:
        return Policy(yaml.safe_load(path.read_text("utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {said(error)}") from None
