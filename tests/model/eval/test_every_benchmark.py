"""Every row of the table on its copy: it loads, an oracle has the best score, a blind answer its share."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("espeakng_loader", reason="copies speak with espeakng-loader")

from afn_model.audio.recording import is_inside
from afn_model.eval import rules
from afn_model.eval.copies import write_copies
from afn_model.eval.loaders import load
from afn_model.eval.rules.extract import same
from afn_model.eval.rules.instructions import CHECKS
from afn_model.eval.rules.normalisers import normaliser
from afn_model.eval.score import RuleError, Tools
from afn_model.eval.table import chosen
from tests.model.eval.oracle import answered, gold, scale, tools

ROWS = {row.name: row for row in chosen(["demo"])}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies")
    write_copies(list(ROWS.values()), folder)
    return folder


@pytest.fixture(scope="module")
def items(data):
    return {name: load(row, data) for name, row in ROWS.items()}


def test_copies_are_a_function_of_the_seed_and_small(data, tmp_path):
    different = [row for row in {row.loader: row for row in ROWS.values()}.values() if row.loader != "covost2"]
    write_copies(different[::-2], tmp_path / "same")  # in another order
    write_copies(different[::6], tmp_path / "other", seed=1)

    def held(folder):
        files = [path for path in folder.rglob("*.*") if path.suffix != ".opus"]  # which has a random serial number
        return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}

    for row in different[::-2]:
        files = held(data / row.name)
        assert held(tmp_path / "same" / row.name) == files
        assert sum(map(len, files.values())) < 2 << 20
    for row in different[::6]:
        assert held(tmp_path / "other" / row.name).keys() == held(data / row.name).keys()
        assert held(tmp_path / "other" / row.name) != held(data / row.name)


@pytest.mark.parametrize("name", ROWS)
def test_a_copy_loads(items, name):
    row, found = ROWS[name], items[name]
    assert len(found) >= 3
    assert len({item.id for item in found}) == len(found)
    assert all(Path(clip.path).is_file() or is_inside(clip.path) for item in found for clip in item.clips)
    assert all(item.clips for item in found) or row.loader == "longaudiobench"  # whose form has questions of text alone
    known = [item for item in found if item.answer is not None or item.references or item.extra]
    assert row.hidden or len(known) == len(found)


@pytest.mark.parametrize("name", ROWS)
def test_who_knows_the_answers_has_the_best_score(items, name):
    row = ROWS[name]
    if row.hidden:
        pytest.skip("the answers are hidden")
    for scorer in row.scorers:
        try:
            said = ["<think>Or else (B)?</think>" + gold(item, scorer["rule"]) for item in items[name]]
            found = rules.score(answered(items[name], said), scorer, tools(row, scorer, best=True))
        except RuleError:
            assert scorer.get("tok") == "ja-mecab"  # an extra that is not everywhere
            continue
        kept = [part for item, part in zip(items[name], found.parts, strict=True) if not formal(item)]
        best = found.scale * sum(part[0] for part in kept if part) / sum(part[1] for part in kept if part)
        what = f"{name}, {scorer['name']}"
        if scorer["rule"] == "cider":
            assert best > 2, what  # a caption against itself and others
        elif scorer["rule"] == "bleu":
            assert found.value == pytest.approx(100), what
        elif row.lower:
            assert best == pytest.approx(0) or scorer["name"] == "der-estimated", what
        elif scorer["rule"] == "label-retrieval":
            assert best >= 80, what  # by equal words alone, in place of an embedder
        else:
            assert best == pytest.approx(scale(row, scorer)[1]), what


@pytest.mark.parametrize("name", ROWS)
def test_a_blind_answer_has_its_share(items, name):
    """The first option, the first label, yes: right where they are the answer, and nowhere else."""
    row = ROWS[name]
    for scorer in row.scorers:
        blind = {
            "choices": lambda item: f"({'A' if item.choices else ''})",
            "labels": lambda item: item.choices[0],
            "yes-no": lambda item: "yes",
        }.get(scorer["rule"])
        if blind is None or row.hidden:
            continue
        said = [blind(item) for item in items[name]]
        found = rules.score(answered(items[name], said), scorer, tools(row, scorer, best=False))
        share = [
            item.answer == "yes" if scorer["rule"] == "yes-no" else same(item.answer, item.choices) == 0
            for item in items[name]
        ]
        assert found.value == pytest.approx(100 * sum(share) / len(share)), f"{name}, {scorer['name']}"


@pytest.mark.parametrize("name", ROWS)
def test_silence_is_worth_nothing(items, name):
    row = ROWS[name]
    for scorer in row.scorers:
        try:
            found = rules.score(answered(items[name], [""] * len(items[name])), scorer, tools(row, scorer, best=False))
        except RuleError:
            assert scorer.get("tok") == "ja-mecab"
            continue
        worst = {"voicebench-refusal": 100.0, "voicebench-letter": 25.0}.get(scorer["rule"])
        if worst is not None:  # quirks: an empty answer is no harmful one, and a letter is drawn
            assert found.value == pytest.approx(worst), scorer
        elif row.lower:
            assert found.value >= 100 - 1e-9, f"{name}, {scorer['name']}"
        elif scorer["rule"] == "judge":
            assert found.value == pytest.approx(scale(row, scorer)[0]), f"{name}, {scorer['name']}"
        else:
            kept = [part[0] for item, part in zip(items[name], found.parts, strict=True) if part and not formal(item)]
            assert sum(kept) <= 0.25 * len(kept), f"{name}, {scorer['name']}"


@pytest.mark.parametrize(
    ("rule", "name", "library"),
    [
        ("wer", "librispeech-clean", "kaldialign"),
        ("wer", "librispeech-clean", "whisper_normalizer"),
        ("bleu", "covost2-de-en", "sacrebleu"),
        ("cpwer", "multi-talker", "meeteval"),
        ("der", "diarisation", "scipy"),
        ("event-f1", "event-captions", "scipy"),
    ],
)
def test_a_library_that_is_missing_is_named(items, monkeypatch, rule, name, library):
    for module in [module for module in sys.modules if module.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    normaliser.cache_clear()
    with pytest.raises(RuleError, match=rf"^{rule} needs {library}: pip install 'afn-kernels\[eval\]'$"):
        rules.score(answered(items[name], ["dog: 0.1-0.4"] * len(items[name])), {"name": "", "rule": rule}, Tools())


def formal(item):
    """An instruction of MMAU-Pro: it asks for a form, and there is no answer to it."""
    return item.extra.get("task_identifier") in CHECKS
