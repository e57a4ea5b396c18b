"""Licences: spellings of people and platforms, what is allowed, and what is unknown."""

import pytest

from afn_model.curate.stage import Context, Dropped, Kept
from afn_model.curate.stages.licences import Licences, read_policy

SPELT = {
    "CC-BY-4.0": ["CC BY 4.0", "cc-by-4.0", "Attribution 4.0 International",
                  "https://creativecommons.org/licenses/by/4.0/legalcode"],
    "CC-BY": ["Creative Commons Attribution license (reuse allowed)", "Creative Commons Attribution", "CC-BY"],
    "CC-BY-NC-SA-3.0": ["Attribution-NonCommercial-ShareAlike 3.0 Unported", "by-nc-sa 3.0 CC", "http://creativecommons.org/licenses/by-nc-sa/3.0/de/"],
    "CC-BY-NC-ND-4.0": ["CC BY-NC-ND 4.0", "Creative Commons Attribution-Noncommercial-No Derivatives 4.0"],
    "CC-BY-NC": ["Attribution NonCommercial", "Creative Commons BY-NC"],
    "CC0-1.0": ["https://creativecommons.org/publicdomain/zero/1.0/", "CC0 1.0 Universal"],
    "CC0": ["Creative Commons 0", "cc0", "CC-0"],
    "PUBLIC-DOMAIN": ["Public Domain", "public domain mark", "https://creativecommons.org/publicdomain/mark/1.0/"],
    "YOUTUBE-STANDARD": ["Standard YouTube License", "YouTube"],
    "ALL-RIGHTS-RESERVED": ["All rights reserved."],
    "CC-SAMPLING+": ["Sampling+"],
    "APACHE-2.0": ["Apache License, Version 2.0", "apache-2.0"],
    "unknown": ["", "free to use", "by the sea", "CC", "accompanied by"],
}  # fmt: skip


@pytest.mark.parametrize("name", SPELT)
def test_spellings(name):
    assert {text: read_policy().licence(text) for text in SPELT[name]} == dict.fromkeys(SPELT[name], name)


def uses(licence, purpose="commercial"):
    found = read_policy().uses(licence, purpose)
    return found["train"], found["annotations"], found["audio"]


def test_what_is_unknown_is_denied():
    assert uses("who knows") == (False, False, False)
    assert uses("CC BY 4.0") == (True, True, True)
    assert uses("CC BY-ND 4.0", "research") == (False, False, False)
    assert uses("CC BY-NC 2.5") == (False, False, False)
    assert uses("CC BY-NC 2.5", "research") == (True, True, True)
    assert uses("Sampling+", "research") == (True, True, False)
    assert uses("Standard YouTube License", "research") == (False, False, False)


def run(stage, *licences):
    return stage.run([{"id": str(n), "licence": licence} for n, licence in enumerate(licences)], Context(None))  # type: ignore[arg-type]


def test_what_may_not_be_used_is_dropped_for_what_is_needed(tmp_path):
    kept, dropped, none = run(Licences(), "CC0", "by-nc cc", "")
    assert kept == Kept({"uses": {"licence": "CC0", "train": True, "annotations": True, "audio": True}})
    assert dropped == Dropped("licence denies train", "CC-BY-NC")
    assert none == Dropped("licence denies train", "unknown")
    assert isinstance(run(Licences(needs=()), "")[0], Kept)
    (odbl,) = run(Licences(needs=("train", "audio")), "ODbL")
    assert odbl == Dropped("licence denies audio", "ODBL")

    own = tmp_path / "own.yaml"
    own.write_text(
        "licences:\n  HOUSE: {train: allow, annotations: deny, audio: deny}\nspellings: {HOUSE: [in-house]}\n"
    )
    stage = Licences(policy=str(own))
    assert run(stage, "In House")[0] == Kept(
        {"uses": {"licence": "HOUSE", "train": True, "annotations": False, "audio": False}}
    )
    assert run(stage, "CC0") == [Dropped("licence denies train", "CC0")]
    before = stage.depends()
    own.write_text("licences:\n  HOUSE: {train: deny, annotations: deny, audio: deny}\n")
    assert stage.depends() != before, "a policy that changes is another stage"
    assert isinstance(run(stage, "house")[0], Dropped)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "licences: 3",
        "licences: {A: {train: maybe, annotations: deny, audio: deny}}",
        "licences: {A: {train: allow}}",
        "{",
    ],
)
def test_a_policy_that_is_none(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"p\.yaml: ") as caught:
        Licences(policy=str(tmp_path / "p.yaml"))
    assert "\n" not in str(caught.value)


def test_parameters():
    for wrong in ({"purpose": "fun"}, {"needs": ("sell",)}, {"policy": "/none.yaml"}):
        with pytest.raises(ValueError, match=r"purpose is|needs are|No such file"):
            Licences(**wrong)
