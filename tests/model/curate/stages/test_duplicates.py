"""Duplicates: which of several stays, whatever the order they come in."""

import itertools

from afn_model.curate.stage import Context, Dropped, Kept
from afn_model.curate.stages.duplicates import ExactDuplicates, same


def row(name, source, pcm, licences=3, **options):
    uses = dict(zip(("train", "annotations", "audio"), [True] * licences + [False] * 3, strict=False))
    found = {"id": name, "source_id": source, "pcm_id": pcm, "uses": uses}
    return {**found, "format": "wav", "rate": 16_000, "channels": 1, "bytes": 100, **options}


def kept(*rows):
    outcomes = ExactDuplicates().run(rows, Context(None))  # type: ignore[arg-type]
    return {
        one["id"]: [copy["id"] for copy in outcome.fields["copies"]]
        if isinstance(outcome, Kept)
        else f"of {outcome.detail}"
        for one, outcome in zip(rows, outcomes, strict=True)
        if isinstance(outcome, (Kept, Dropped))
    }


def test_the_best_licence_then_the_best_quality_then_the_smallest_id():
    rows = (
        row("a", "s1", "p1", licences=1, rate=48_000),
        row("b", "s2", "p1", format="mp3", rate=48_000),
        row("c", "s3", "p1", rate=16_000),
        row("d", "s4", "p1", rate=22_050),
        row("e", "s4", "p1", rate=22_050),
        row("f", "s5", "p5"),
    )
    wanted = {"a": "of d", "b": "of d", "c": "of d", "d": ["a", "b", "c", "e"], "e": "of d", "f": []}
    for order in list(itertools.permutations(rows))[::37]:
        assert kept(*order) == wanted


def test_a_licence_counts_more_than_quality():
    wav, mp3 = row("a", "s1", "p", licences=2), row("b", "s2", "p", format="mp3")
    assert kept(wav, mp3) == {"a": "of b", "b": ["a"]}


def test_same_bytes_or_same_samples_also_by_way_of_others():
    rows = [row("a", "s1", "p1"), row("b", "s1", "p2"), row("c", "s3", "p2"), row("d", "s4", "p4")]
    for order in itertools.permutations(rows):
        assert kept(*order) == {"a": ["b", "c"], "b": "of a", "c": "of a", "d": []}
    chain = [(str(n), str(n + 1)) for n in range(2000)]
    assert len(set(same(chain))) == 1
    assert len(set(same([(str(n),) for n in range(10)]))) == 10
