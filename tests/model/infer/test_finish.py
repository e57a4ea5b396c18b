"""When answers end: stop strings and tokens, loops, the cap on thinking, length; and what is shown meanwhile."""

import random

import pytest

from afn_model.infer.finish import Finish, ends_inside, in_loop
from afn_model.infer.sampling_params import SamplingParams
from tests.tiny import tokenizer

STOP = 2  # the id of <|im_end|>


@pytest.fixture(scope="module")
def words():
    return tokenizer()


@pytest.fixture(scope="module")
def letters():
    """Every byte is a token."""
    return tokenizer((), 262)


def answer(of, room: int = 10_000, thinking: bool = False, **options) -> Finish:
    params = SamplingParams(**{"stop_token_ids": (STOP,), "max_new_tokens": 10_000} | options)
    return Finish(params, room, decode=of.decode, end_of_thinking=of.encode("</think>").ids, thinking=thinking)


def fed(finish: Finish, ids: list[int]) -> list[str]:
    """What is shown as tokens come, until the answer ends."""
    shown = []
    for token in ids:
        shown.append(finish.feed(token))
        assert "\N{REPLACEMENT CHARACTER}" not in shown[-1]
        if finish.reason is not None:
            break
    return shown


@pytest.mark.parametrize("of", ["words", "letters"])
def test_a_stop_string_is_found_wherever_tokens_part_it(of, request):
    of, pick = request.getfixturevalue(of), random.Random(0)
    text = "One 日本 two: déjà vu, déjà vécu. 🎧🎤 end"
    ids = of.encode(text).ids
    for _ in range(20):
        begin = pick.randrange(len(text))
        stops = [text[begin : begin + pick.randint(1, 9)] for begin in (begin, pick.randrange(len(text)))]
        expected = text[: min((text.find(one) + len(one), text.find(one)) for one in stops)[1]]
        finish = answer(of, stop=stops)
        shown = fed(finish, ids)
        assert (finish.text, finish.reason) == ("".join(shown), "stop")
        assert finish.text == expected, stops
        assert finish.tokens == ids[: len(shown)]
        assert text[: len(expected)].startswith(of.decode(finish.tokens[:-1])[: len(expected)])


def test_what_may_begin_a_stop_string_waits_and_is_shown_when_it_does_not(letters):
    finish = answer(letters, stop=("END.", "EN 日"))
    assert fed(finish, letters.encode("aEN").ids) == ["a", "", ""]
    assert fed(finish, letters.encode("EN 日"[:3]).ids) == ["EN", "", ""]
    assert fed(finish, letters.encode("本").ids) == ["", "", "EN 本"]
    assert fed(finish, letters.encode("END").ids) == ["", "", ""]
    assert finish.feed(STOP) == "END"
    assert (finish.text, finish.reason) == ("aENEN 本END", "stop")
    assert finish.answer == finish.tokens[:-1]


def test_text_without_stop_strings_comes_at_once(letters):
    finish, ids = answer(letters, room=4), letters.encode("aé日").ids
    assert fed(finish, ids[:3]) == ["a", "", "é"]
    assert (finish.feed(ids[3]), finish.reason) == ("\N{REPLACEMENT CHARACTER}", "length")


def test_each_end(words):
    ids = words.encode("A dog barks. A dog barks.").ids
    for options, count, reason in (
        ({"room": 3}, 3, "length"),
        ({"stop_token_ids": (ids[2],)}, 3, "stop"),
        ({"stop_token_ids": (ids[1],), "min_new_tokens": len(ids) // 2}, len(ids) // 2 + 2, "stop"),
        ({"stop": "dog", "min_new_tokens": len(ids) // 2}, len(ids) // 2 + 2, "stop"),
    ):
        finish = answer(words, **options)
        fed(finish, ids)
        assert (len(finish.tokens), finish.reason) == (count, reason), options
        with pytest.raises(AssertionError):
            finish.feed(5)
    assert answer(words, room=0).reason == "length"
    finish = answer(words, stop=" barks!")
    fed(finish, ids[:3])
    assert finish.text + finish.end("abort") == words.decode(ids[:3])
    assert (finish.end("error"), finish.reason) == ("", "abort")
    finish = answer(words)
    finish.feed(ids[0], ended=True)
    assert finish.reason == "stop"
    quiet = Finish(SamplingParams(stop_token_ids=(STOP,)), 9)
    assert (fed(quiet, [5, STOP]), quiet.answer, quiet.reason) == (["", ""], [5], "stop")


def test_loops():
    assert in_loop([1, 2, 3] * 4, 12)
    assert in_loop([3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3], 13)
    assert in_loop([1, 1, 2, 2] * 4, 16)
    assert not in_loop([1, 2, 3] * 4, 13)
    assert not in_loop([1, 2, 3, 4] * 3, 12), "three copies"
    assert not in_loop([9, *[1, 2, 3] * 4][:12], 12)


def test_an_answer_that_repeats_itself_ends(words):
    line = list(range(20, 30))
    for loop, expected in ((0, None), (64, "repetition"), (256, "repetition")):
        finish = answer(words, loop_tokens=loop)
        fed(finish, [*range(50, 61), *line * 30])
        assert finish.reason == expected
        # The window is full of copies at 11 + loop tokens; a look is taken at every 16th token.
        assert len(finish.tokens) == (11 + 300 if not loop else -(-(11 + loop) // 16) * 16)
    finish = answer(words, loop_tokens=64)
    fed(finish, (line * 5 + [31]) * 6)
    assert finish.reason is None


@pytest.mark.parametrize("of", ["words", "letters"])
def test_thinking_is_cut_at_its_cap(of, request):
    of = request.getfixturevalue(of)
    close = of.encode("</think>").ids
    said = of.encode("One two three. " * 9).ids
    for opened, thinking in (("<think>", False), ("", True)):
        for cap in (0, 1, 7):
            finish = answer(of, max_thinking_tokens=cap, thinking=thinking)
            fed(finish, of.encode(opened).ids)
            rest = iter(said)
            before = len(finish.tokens)
            while len(finish.tokens) < before + cap + len(close) + 5:
                finish.feed(next(rest) if finish.forced is None else finish.forced)
            assert finish.tokens[before:] == [*said[:cap], *close, *said[cap : cap + 5]]
            assert not finish.thinking
    # Shorter than the cap, and again: both count, and there is no third.
    finish = answer(of, max_thinking_tokens=len(said) + len(close) + 1)
    fed(finish, [*of.encode("<think>").ids, *said, *close, *of.encode("Yes.").ids])
    assert (finish.forced, finish.thinking) == (None, False)
    fed(finish, of.encode("<think>").ids)
    assert finish.forced is None
    finish.feed(said[0])
    assert finish.forced == close[0]


@pytest.mark.parametrize("of", ["words", "letters"])
def test_prompts_that_end_inside_of_thinking(of, request):
    of = request.getfixturevalue(of)
    asked = "<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n"
    for said, inside in (
        (asked, False),
        (asked + "<think>\n", True),
        (asked + "<think>a</think>b", False),
        (asked + "<think>a</think>b<think>", True),
        (asked + "<think>a<|im_end|>\n<|im_start|>assistant\n", False),
        (asked + "<think>a<|im_end|>\n<|im_start|>user\n<think>", False),
        ("<think>", False),
        ("", False),
    ):
        assert ends_inside(of.encode(said, add_special_tokens=False).ids, of) is inside, said


def test_thinking_without_a_cap_goes_on(letters):
    finish = answer(letters, thinking=True)
    fed(finish, letters.encode("hm " * 50).ids)
    assert (finish.forced, finish.thinking) == (None, True)
