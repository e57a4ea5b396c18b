"""Personal data: what is found, what only looks like it, when it is said, and what is written in its place."""

import pytest

from afn_model.curate.stage import Context, Dropped, Kept
from afn_model.curate.stages.privacy import Privacy, find, joined, luhn, mask_text, masked

THERE = {
    "phone": [
        "Call me at [555-123-4567] tonight.",
        "[(212) 555-0187], ask for Ann",
        "[+44 20 7946 0958]",
        "from abroad [+1 (415) 555-2671].",
        "[+49 30 901820]",
        "Berlin: [030 1234567]",
        "tel [5551234567]",
        "My phone number is [555 0199 22].",
        "it is [zero one seven one five five five one two three four]",
        "[five five five, one two one two]",
    ],
    "email": [
        "write to [jane.doe@example.co.uk] please",
        "[a+b@x.io]",
        "it is [jane at example dot com] okay",
        "[j.d at mail dot example dot org]",
    ],
    "card": ["[4111 1111 1111 1111]", "pay with [5500-0000-0000-0004].", "[378282246310005]"],
    "iban": ["[DE89 3704 0044 0532 0130 00]", "to [GB82WEST12345698765432]", "[NL91 ABNA 0417 1643 00] THANK YOU"],
    "ip": ["[192.168.0.17] is the router", "ping [8.8.8.8].", "[2001:db8::ff00:42:8329]"],
    "address": [
        "[742 Evergreen Terrace, Springfield 62704]",
        "I live at [12 Baker Street]",
        "[221B Baker Street, London NW1 6XE]",
        "[Hauptstraße 12, 10115 Berlin]",
    ],
}
NOT_THERE = [
    "on 2024-05-17 or 17.05.2024 at 12:30:45",
    "the war of 1914-1918, the years 1914 1918 1939 1945",
    "$1,234,567.89 or 1 234 567 people, 2000 000 000",
    "RTX 4090-1234-5678, WH-1000XM5 for 299, phone model 3310 2000 5110",
    "ISBN 978-3-16-148410-0",
    "version 1.2.3.4, chapter 1.2.3.4, 256.1.1.1, 1.2.3.4.5",
    "10:00 to 11:30, 12:34:56",
    "one two three four five six seven eight nine",
    "ten nine eight seven six five four three two one zero",
    "five five five",
    "Wall Street rose 5 percent in 21 Jump Street",
    "He has 5 St. Bernard dogs and 12345 fleas",
    "order 4111 1111 1111 1112",
    "0000 0000 0000 0000",
    "DE89 3704 0044 0532 0130 01",
    "3.14159265358979",
    "look at example dot product, at the dot com boom",
    "phone costs 1,299.00, tel aviv 2023 2024, call in 1999 or 2004",
    "std::map, a::b, @home, user@, 20240517123045",
    "1920x1080 60 90 120",
]


@pytest.mark.parametrize("kind", THERE)
def test_what_is_there(kind):
    for marked in THERE[kind]:
        text = marked.replace("[", "").replace("]", "")
        begin = marked.index("[")
        assert find(text) == [(begin, marked.index("]") - 1, kind)], text


@pytest.mark.parametrize("text", NOT_THERE)
def test_what_only_looks_like_it(text):
    assert find(text) == []


def test_luhn_notices_one_wrong_digit_and_two_that_change_places():
    digits = [int(one) for one in "4539578763621486"]
    assert luhn(digits)
    for place in range(16):
        assert not luhn([*digits[:place], (digits[place] + 1) % 10, *digits[place + 1 :]])
    assert not luhn([*digits[:2], digits[3], digits[2], *digits[4:]])


def test_masked_texts():
    assert mask_text("a@b.de or 8.8.8.8, a@b.de") == ("[email] or [ip], [email]", 3)
    assert mask_text("a@b.de or 8.8.8.8", ["ip"]) == ("a@b.de or [ip]", 1)
    value = {"messages": [{"content": "+44 20 7946 0958"}, ("x", 3.5, None)], "n": 5551234567}
    assert masked(value) == ({"messages": [{"content": "[phone]"}, ["x", 3.5, None]], "n": 5551234567}, 1)
    assert value["messages"][0]["content"].startswith("+44")


WORDS = ["call", "me", "at", "555", "123", "4567", "tonight"]
TIMED = [{"word": word, "start": float(at), "end": at + 0.5} for at, word in enumerate(WORDS)]
ROW = {
    "id": "0",
    "about": {"minors": True, "voice_cloning": False},
    "seconds": 60.0,
    "transcripts": [
        {"id": "555-123-4567", "start": 0.0, "end": 7.0, "text": " ".join(WORDS), "words": TIMED},
        {"segment": "s3", "text": "mail a@b.de"},
    ],
    "captions": None,
    "segments": [{"id": "s3", "start": 30.0, "end": 40.0}, {"id": "s4", "start": 40.0, "end": 50.0}],
}


def run(row, **options):
    return Privacy(**options).run([row], Context(None))[0]  # type: ignore[arg-type]


def test_a_recording_is_dropped_or_what_is_said_is_silenced():
    assert run(ROW) == Dropped("personal data", "1 email, 1 phone")
    kept = run(ROW, action="mask")
    told = {"found": {"email": 1, "phone": 1}, "silences": [[3.0, 5.5], [30.0, 40.0]], "flags": ["minors"]}
    assert kept == Kept({"privacy": told}, {"masked: email": 1, "masked: phone": 1})
    assert run({**ROW, "transcripts": "a@b.de"}, action="mask").fields["privacy"]["silences"] == [[0.0, 60.0]]
    assert run(ROW, kinds=("card",)).fields["privacy"]["found"] == {}
    assert run(ROW, flags=("minors",)) == Dropped("flagged: minors")
    assert Privacy(texts=("merged",)).reads == ("about", "seconds", "segments", "merged")
    unknown = run({**ROW, "transcripts": [{"segment": "s9", "text": "a@b.de"}]}, action="mask")
    assert unknown.fields["privacy"]["silences"] == [[0.0, 60.0]], "nobody knows when"
    assert joined([[5, 6], [1, 3], [2, 4]]) == [[1, 4], [5, 6]]


def test_parameters_of_privacy():
    for wrong in ({"action": "warn"}, {"kinds": ("names",)}, {"flags": ("loud",)}):
        with pytest.raises(ValueError, match=r"drop or mask|none of"):
            Privacy(**wrong)
