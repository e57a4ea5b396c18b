"""BLEU of translations."""

import importlib.util

import pytest

from afn_model.eval.items import AnsweredItem, Item, ItemClip
from afn_model.eval.loaders.files import UNSCORED
from afn_model.eval.rules.translation import bleu
from afn_model.eval.score import RuleError, Tools, interval

sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu (the eval extra) is not installed")
TOOLS = Tools()
ENGLISH = [
    ("The tea is very hot today.", "The tea is hot today."),
    ("Where is the main station?", "Where is the station of the town?"),
    ("I see a red car over there.", "I see a red car over there."),
    ("He said good morning to us.", "He says good day to us all."),
]


def pairs(*texts: tuple[str, str | None]) -> list[AnsweredItem]:
    items = [Item(str(n), clips=(ItemClip(f"{n}.mp3"),), references=(true,)) for n, (true, _) in enumerate(texts)]
    return [AnsweredItem(item, output) for item, (_, output) in zip(items, texts, strict=True)]


def test_chinese_needs_a_tokeniser_of_its_own():
    """A perfect translation without spaces is one word to 13a, which has no 2-grams."""
    answered = pairs(("今天天气很好我们去公园", "今天天气很好我们去公园"))
    found = {tok: bleu(answered, TOOLS, tok=tok).value for tok in ("13a", "zh", "char")}
    assert found == pytest.approx({"13a": 0.0, "zh": 100.0, "char": 100.0})


def test_the_value_and_the_signature_are_sacrebleu_s():
    score = bleu(pairs(*ENGLISH), TOOLS)
    expected = sacrebleu.corpus_bleu([output for _, output in ENGLISH], [[true for true, _ in ENGLISH]])
    assert score.value == expected.score
    assert 20 < score.value < 80
    assert score.signature == f"BLEU, nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert bleu(pairs(*((true, output.lower()) for true, output in ENGLISH)), TOOLS).value < score.value  # cased
    alone = sacrebleu.sentence_bleu(ENGLISH[0][1], [ENGLISH[0][0]])
    assert score.parts[0] == (alone.score, 1.0)
    assert score.n == 4
    short = bleu(pairs(("Good day", "Good day")), TOOLS)  # by itself: of the orders that there are
    assert short.value == 0
    assert short.parts == [(pytest.approx(100), 1.0)]


def test_the_interval_is_that_of_drawn_recordings():
    answered = pairs(*ENGLISH)
    score = bleu(answered, TOOLS)
    low, high = interval(answered, score)
    assert low < score.value < high <= 100.0001
    assert (low, high) == score.interval
    assert bleu(answered, TOOLS).interval == score.interval
    one = [
        AnsweredItem(Item(str(n), clips=(ItemClip("same.mp3"),), references=(true,)), text)
        for n, (true, text) in enumerate(ENGLISH)
    ]
    assert bleu(one, TOOLS).interval == pytest.approx((score.value, score.value))  # one recording: nothing to draw


def test_no_output_is_an_empty_translation_and_what_is_unscored_is_left_out():
    whole = bleu(pairs(*ENGLISH), TOOLS)
    silent = bleu(pairs(*ENGLISH[:3], (ENGLISH[3][0], None)), TOOLS)
    assert silent.value < whole.value
    assert silent.n == 4
    assert silent.parts[3] == (0.0, 1.0)
    assert silent.notes == ["1 items have no output and count as empty translations"]
    outside = Item("x", references=("never",), extra={UNSCORED: "not in validated.tsv"})
    more = bleu([*pairs(*ENGLISH), AnsweredItem(outside, "asked"), AnsweredItem(Item("hidden"), "asked")], TOOLS)
    assert more.value == whole.value
    assert more.parts[4:] == [None, None]
    assert more.notes == ["2 items left out: without a reference, or not in the official split"]
    nothing = bleu([AnsweredItem(outside, "asked")], TOOLS)
    assert nothing.n == 0
    assert nothing.value != nothing.value


def test_any_of_several_references_may_match():
    item = Item("0", references=("the tea is really very hot", "this tea is hot indeed"))
    other = Item("1", references=("where is the station now",))
    answered = [AnsweredItem(item, "this tea is hot indeed"), AnsweredItem(other, "where is the station now")]
    assert bleu(answered, TOOLS).value == pytest.approx(100)


def test_what_is_missing_is_named():
    with pytest.raises(RuleError, match="tok 'xx': sacrebleu has no such tokeniser"):
        bleu([], TOOLS, tok="xx")
    if importlib.util.find_spec("MeCab") is None:
        with pytest.raises(RuleError, match=r"ja-mecab needs a tokeniser: pip install 'sacrebleu\[ja\]'"):
            bleu([], TOOLS, tok="ja-mecab")
