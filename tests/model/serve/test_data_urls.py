"""Base64 and ``data:`` addresses: exactly that, and no more than is allowed."""

import base64
import random

import pytest

from afn_model.serve.data_urls import decode_base64, decode_data_url
from afn_model.serve.errors import ApiError


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 1001])
def test_bytes_come_back_up_to_what_is_allowed(size):
    data = bytes(number % 251 for number in range(size))
    text = base64.b64encode(data).decode()
    assert decode_base64(text, size) == data
    for head in ("data:audio/wav;base64,", "data:;base64,", "data:audio/webm;codecs=opus;base64,"):
        assert decode_data_url(head + text, size) == data


@pytest.mark.parametrize(
    "text", ["YQ", "YQ==\n", " YQ=", "YQ==YQ==", "Y===", "YW-_", "ÄÄÄÄ", "=aaa", "YQ=a", "....", "YWJ\0"]
)
def test_what_is_no_base64(text):
    with pytest.raises(ApiError) as caught:
        decode_base64(text, 100, "messages[0].content[1]")
    assert (caught.value.status, caught.value.param) == (400, "messages[0].content[1]")
    assert "\n" not in str(caught.value)


def test_more_than_is_allowed_is_not_decoded(monkeypatch):
    monkeypatch.setattr(base64, "b64decode", None)
    for text in ("A" * 4000, "!" * 4000):
        with pytest.raises(ApiError) as caught:
            decode_base64(text, 2997)
        assert caught.value.status == 413


def test_schemes_and_encodings_have_no_case():
    assert decode_data_url("DATA:audio/wav;Base64,YQ==", 10) == b"a"


@pytest.mark.parametrize(
    "url",
    [
        "data:audio/wav,abcd",
        "data:audio/wav;base64",
        "data:audio/wav;base64;YQ==",
        "data:,YQ==",
        "http://host/a.wav",
        "data:audio/wav;" + "a=b;" * 400 + "base64,YQ==",
        "data:a\nb/c;base64,YQ==",
    ],
)
def test_other_addresses(url):
    with pytest.raises(ApiError) as caught:
        decode_data_url(url, 100, "audio_url.url")
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "audio_url.url", "invalid_data_url")


def test_the_last_bytes_count_too():
    with pytest.raises(ApiError) as caught:
        decode_base64(base64.b64encode(bytes(101)).decode(), 100)
    assert caught.value.status == 413


def test_base64_in_pieces_is_base64():
    for size in range(30):
        data = random.Random(size).randbytes(size)
        assert decode_base64(base64.b64encode(data).decode(), 100, piece=8) == data
    for wrong in ("A", "AAA", "AA==AAAA", "AAA=AAAA", "AAAA====", "AA\nA", "AA-_", "ÄAAA", "A==="):
        with pytest.raises(ApiError):
            decode_base64(wrong, 100, piece=4)
