"""Prompts as ids and windows: where each window stands, and what the keys and values of a page depend on."""

import struct

import pytest

from afn_model.audio.digests import window_digest, windows_of
from afn_model.audio.frames import WINDOW, window_samples
from afn_model.infer.tokens import PromptTokens, WindowSpan, prompts_of, spans_of
from afn_model.prompt.conversation import read_conversation
from tests.tiny import conversation, noise, processor

SOUND = 9
A, B = b"a" * 32, b"b" * 32


def of(ids: list[int], clips, digests) -> list[tuple]:
    spans = spans_of(ids, list(map(window_samples, clips)), SOUND, digests)
    return [(span.start, span.stop, span.digest, span.index) for span in spans]


@pytest.mark.parametrize("boundaries", [True, False])
def test_spans_of_what_the_processor_prepares(boundaries):
    of, clips = processor(boundaries=boundaries), [noise(30.5), noise(2, 1)]
    prepared = of.prepare(read_conversation(conversation("What is said?", *clips)))
    rows = windows_of(prepared.clips)
    spans = spans_of(
        prepared.ids.tolist(),
        [window_samples(clip.numel()) for clip in prepared.clips],
        of.sound_id,
        list(map(window_digest, rows)),
    )
    assert [(span.stop - span.start, span.index) for span in spans] == [(750, 0), (12, 1), (50, 0)]
    assert [span.digest for span in spans] == [window_digest(row) for row in rows]
    placed = [place for span in spans for place in range(span.start, span.stop)]
    assert placed == (prepared.ids == of.sound_id).nonzero().squeeze(1).tolist()
    assert PromptTokens(prepared.ids.tolist(), spans).windows[2].start == spans[1].stop + 2 * boundaries


def test_adjacent_recordings_without_boundary_tokens_are_told_apart_by_their_indices():
    # 40 s and 2 s one after the other, and one recording of 31 s: all of them one run of placeholders.
    ids = [1] + [SOUND] * 1050 + [2]
    expected = [(1, 751, A, 0), (751, 1001, B, 1), (1001, 1051, A, 0)]
    assert of(ids, [40 * 16_000, 2 * 16_000], [A, B, A]) == expected
    assert of(ids, [42 * 16_000], [A, B]) == [(1, 751, A, 0), (751, 1051, B, 1)]
    assert of([SOUND] * 1500, [WINDOW, WINDOW], [A, A])[1][3] == 0
    assert of([SOUND] * 1500, [2 * WINDOW], [A, A])[1][3] == 1


def test_a_recording_too_short_for_a_token_has_no_window():
    assert of([1, SOUND, 2], [320, 321], [A]) == [(1, 2, A, 0)]
    assert of([1, 2], [], []) == []


@pytest.mark.parametrize(
    ("ids", "clips", "digests", "says"),
    [
        ([SOUND] * 3, [1_500], [A], "3 audio placeholders in the prompt for 2 audio tokens"),
        ([SOUND] * 2, [1_500], [A, B], "2 digests for the 1 audio windows"),
        ([SOUND, 1, SOUND], [1_500], [A], r"window 0 has other tokens among its placeholders \[0, 3\)"),
    ],
)
def test_placeholders_that_do_not_match(ids, clips, digests, says):
    with pytest.raises(ValueError, match=says):
        spans_of(ids, list(map(window_samples, clips)), SOUND, digests)


def test_windows_lie_in_the_prompt_in_order():
    PromptTokens([1] * 10, (WindowSpan(0, 4, A, 0), WindowSpan(4, 10, A, 1)))
    for spans in ([(0, 4), (3, 6)], [(4, 4)], [(8, 11)]):
        with pytest.raises(ValueError, match=r"audio window at \[\d+, \d+\) must lie between tokens \d and 10"):
            PromptTokens([1] * 10, tuple(WindowSpan(*span, A, 0) for span in spans))


def test_content_of_a_page():
    ids = [1, 2, *[SOUND] * 6, 3, 4, 5, 6]
    prompt = PromptTokens(ids, (WindowSpan(2, 5, A, 0), WindowSpan(5, 8, B, 1)))

    def words(*numbers):
        return struct.pack(f"<{len(numbers)}i", *numbers)

    assert prompt.content(0, ids[:4]) == words(1, 2, 9, 9) + A + words(0, 2)
    assert prompt.content(1, ids[4:8]) == words(9, 9, 9, 9) + A + words(0, -2) + B + words(1, 1)
    assert prompt.content(0, ids[:2]) == words(1, 2), "the window begins where the page ends"
    # The last placeholder ends a page; what follows, the answer too, is ids alone.
    assert prompt.content(2, ids[8:]) == words(3, 4, 5, 6)
    assert prompt.content(3, [7, 7, 7, 7]) == words(7, 7, 7, 7)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 12])
def test_contents_of_all_pages_are_those_of_each(size):
    ids = [1, 2, *[SOUND] * 6, 3, *[SOUND] * 4, 4, 5]
    prompt = PromptTokens(ids, (WindowSpan(2, 5, A, 0), WindowSpan(5, 8, B, 1), WindowSpan(9, 13, A, 0)))
    for pages in range(len(ids) // size + 1):
        expected = [prompt.content(page, ids[page * size : page * size + size]) for page in range(pages)]
        assert prompt.contents(pages, size) == expected


def test_pages_of_equal_ids_differ_by_the_windows_samples_index_and_offset():
    ids = [SOUND] * 8
    variants = [
        (WindowSpan(0, 8, A, 0),),
        (WindowSpan(0, 8, B, 0),),
        (WindowSpan(0, 8, A, 1),),
        (WindowSpan(0, 4, A, 0), WindowSpan(4, 8, A, 0)),
        (WindowSpan(0, 4, A, 0), WindowSpan(4, 8, A, 1)),
        (WindowSpan(0, 5, A, 0), WindowSpan(5, 8, A, 1)),
        (WindowSpan(1, 8, A, 0),),
        (),
    ]
    contents = {PromptTokens(ids, windows).content(1, ids[4:]) for windows in variants}
    # In the second page the first and the seventh differ by where the window began.
    assert len(contents) == len(variants)


def test_prompts_of_a_batch():
    ids, lengths = [1, SOUND, SOUND, 2, 3, 4, SOUND, SOUND, 5, SOUND], [4, 2, 4]
    first, second, third = prompts_of(ids, lengths, [[1_500], [], [1_500], [321]], SOUND, [A, B, A])
    assert (first.ids, second.ids, third.ids) == ([1, SOUND, SOUND, 2], [3, 4], [SOUND, SOUND, 5, SOUND])
    assert first.windows == (WindowSpan(1, 3, A, 0),)
    assert second.windows == ()
    assert third.windows == (WindowSpan(0, 2, B, 0), WindowSpan(3, 4, A, 0))
    with pytest.raises(ValueError, match="2 audio placeholders in the prompt for 3 audio embeddings"):
        prompts_of([1, SOUND, SOUND], [3], [[1_500], [321]], SOUND, [A, B])
