"""Files as they are found: joined, tagged, unfinished, with wrong sizes. What FFmpeg plays is played whole."""

import re
import warnings

import pytest
import torch

from afn_model.audio.container import inspect, ogg_crc, skip_tags
from afn_model.audio.decode import audio_seconds, load_audio
from afn_model.audio.source import read_source
from bench.odd_recordings import APE, TAG, mp3, odd_files, ogg, wav, with_count, with_flipped_bit
from bench.recordings import encode, heard, ladder, sound_file

ODD = odd_files()


@pytest.mark.parametrize("name", list(ODD))
def test_an_odd_file_plays_whole_with_one_warning_where_it_was_mended(name):
    odd = ODD[name]
    data = odd.data
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pcm = load_audio(data, name="odd")
    seconds = pcm.numel() / 16_000
    assert abs(seconds - odd.seconds) <= odd.slack
    assert [*heard(pcm), int(odd.seconds) - 1][: int(odd.seconds)] == list(range(int(odd.seconds)))
    assert audio_seconds(read_source(data)) == pytest.approx(seconds, abs=0.05)
    assert len(said) == odd.mended, [str(one.message) for one in said]
    if odd.mended:
        assert re.fullmatch(r"odd: [^\n]+; what is there is used", str(said[0].message))
        with pytest.raises(ValueError, match="odd: ") as error:
            load_audio(data, strict=True, name="odd")
        assert "\n" not in str(error.value)
    else:
        assert load_audio(data, strict=True).numel() == pcm.numel()


def joined_wavs(*firsts: int) -> bytes:
    """Wavs of 3 s, as ``cat`` joins them; 33,075 bytes of samples in each, and padding."""
    return b"".join(sound_file(ladder(3, 11_025, 1, first), 11_025, "WAV", "PCM_U8") for first in firsts)


@pytest.mark.parametrize("count", [2, 3])
def test_joined_wavs_play_whole(count):
    data = joined_wavs(*range(0, 3 * count, 3))
    pcm = load_audio(data, strict=True)
    assert abs(pcm.numel() / 16_000 - 3 * count) < 0.01
    assert heard(torch.cat([pcm, pcm.new_zeros(160)])) == list(range(3 * count))
    assert audio_seconds(read_source(data)) == pytest.approx(3 * count, abs=0.01)
    last = 3 * count - 1
    assert heard(load_audio(data, start=last - 0.1, end=last + 0.95)) == [last]


@pytest.mark.parametrize("kind", ["aiff", "m4a", "mp4 of a stream"])
def test_joined_files_play_whole(kind):
    def made(first: int) -> bytes:
        if kind == "aiff":
            return sound_file(ladder(3, 11_025, 1, first), 11_025, "AIFF", "PCM_S8")
        fast = {} if kind == "m4a" else {"movflags": "frag_keyframe+empty_moov"}
        return encode(ladder(3, 16_000, 1, first), 16_000, "m4a", options=fast)

    data = made(0) + made(3)
    pcm = load_audio(data, strict=True)
    assert heard(torch.cat([pcm, pcm.new_zeros(160)]))[:6] == list(range(6))
    assert audio_seconds(read_source(data)) == pytest.approx(pcm.numel() / 16_000, abs=0.05)
    assert len(inspect(made(0)).parts) == 1


def test_many_joined_wavs():
    assert len(inspect(wav(0.001) * 3_000).parts) == 3_000


def test_the_last_of_joined_wavs_is_short():
    with pytest.warns(UserWarning, match="of the 128000 bytes of samples that its header counts are there"):
        load_audio(wav() + wav()[:-20_000])


@pytest.mark.parametrize("name", ["mp3 joined from 3 s and 20 s", "vorbis, two streams", "webm of a browser"])
def test_a_part_of_an_odd_file(name):
    data, last = ODD[name].data, int(ODD[name].seconds) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert heard(load_audio(data, start=last - 0.1, end=last + 0.9)) == [last]


def cut_short():
    """Files that are shorter than they say, by more than a moment."""
    flac, fast = encode(ladder(4), 16_000, "flac"), {"movflags": "faststart"}
    streaming = encode(ladder(4), 16_000, "m4a", options=fast)
    webm = encode(ladder(4, 48_000), 48_000, "webm")
    vorbis = ogg("VORBIS", 12, rate=48_000, channels=2)
    page = [match.start() for match in re.finditer(b"OggS", vorbis)][-2]
    return {
        "wav": wav()[:-64_000],
        "wav of 0 samples": wav()[:44],
        "aiff": sound_file(ladder(4), 16_000, "AIFF")[:-64_000],
        "au": sound_file(ladder(4), 16_000, "AU")[:-64_000],
        "flac": flac[: len(flac) // 2],
        "flac, its last frame": flac[:-10_000],
        "mp3": mp3(4)[:8_000],
        "mp3 whose header counts too many": with_count(mp3(4), lambda n: n + 50),
        "mp3 with a hole": mp3(4)[:8_000] + bytes(3_000) + mp3(4)[11_000:],
        "m4a": encode(ladder(4), 16_000, "m4a")[:20_000],
        "m4a for streaming": streaming[: len(streaming) // 2],
        "webm": webm[: len(webm) // 2],
        "vorbis with a damaged page": vorbis[: page + 99] + bytes([vorbis[page + 99] ^ 4]) + vorbis[page + 100 :],
    }


@pytest.mark.parametrize("name", list(cut_short()))
def test_a_part_is_never_returned_as_the_whole(name):
    data = cut_short()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"truncated|damaged") as error:
            load_audio(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make", [lambda: encode(ladder(4), 16_000, "flac"), lambda: ogg("OPUS"), lambda: ogg("VORBIS")]
)
def test_a_flipped_bit_is_never_passed_over(make):
    with pytest.raises(ValueError, match=r"cannot be decoded|wrong checksum"):
        load_audio(with_flipped_bit(make()), strict=True)


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_an_ogg_file_torn_in_a_page_is_said_to_be(codec):
    data = ogg(codec, 12, rate=48_000, channels=2)
    with pytest.warns(UserWarning, match="its last page is incomplete"):
        pcm = load_audio(data[: len(data) * 2 // 3])
    assert 0 < pcm.numel() < 11 * 16_000


def test_a_webm_torn_in_a_block_is_said_to_be():
    data = ODD["webm of a browser"].data
    with pytest.warns(UserWarning, match="its last block is incomplete"):
        pcm = load_audio(data[: len(data) // 2])
    assert heard(pcm)[:1] == [0]


def test_tags_in_a_row_and_their_padding_are_skipped():
    padded = TAG + bytes(300)
    assert skip_tags(TAG + APE + padded + b"fLaC") == len(TAG + APE + padded)
    assert skip_tags(b"fLaC") == 0
    assert skip_tags(TAG) == len(TAG)


def test_a_video_with_sound_has_one_stream_after_all():
    pages = [b"OggS" + b"\0\2" + bytes(20) + b"\1\1x", b"OggS" + b"\0\0" + bytes(20) + b"\1\1x"]

    def stamped(page):
        return page[:22] + ogg_crc(page).to_bytes(4, "little") + page[26:]

    first, other = map(stamped, pages)
    assert [begin for begin, _ in inspect(first + first + other).parts] == [0]
    assert [begin for begin, _ in inspect(first + other + first + other).parts] == [0, 58]


def test_an_ogg_file_without_a_whole_page_is_said_to_be_damaged():
    """Where its streams are counted, there is none."""
    page = bytearray(ogg("VORBIS")[:58])
    page[22] ^= 1
    found = inspect(page)
    assert found.parts == ((0, 58),)
    assert found.problems[0] == "damaged at byte 0 (wrong checksum)"
