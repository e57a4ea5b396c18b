"""Recordings as they are found in the world: joined, tagged, unfinished, with wrong sizes. Each says what is in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from afn_model.audio.container import ogg_crc
from bench.recordings import encode, ladder, sound_file

TAG = b"ID3\x04\x00\x00\x00\x00\x00\x10" + bytes(16)
APE = b"APETAGEX" + b"".join(n.to_bytes(4, "little") for n in (2000, 32, 1, 0xA0000000)) + bytes(40)
CLUSTER = re.compile(rb"\x1f\x43\xb6\x75([\x40-\x7f].|[\x20-\x3f]..|[\x80-\xff]|\x01.{7})", re.DOTALL)


@dataclass(frozen=True)
class Odd:
    """A file, how long it plays, and whether something in it has to be mended.

    Args:
        make: the bytes.
        seconds: second i has tone i.
        mended: one warning is due, and an error under ``strict``.
        slack: seconds that encoders add at both ends and at each join.
    """

    make: Callable[[], bytes]
    seconds: float
    mended: bool = True
    slack: float = 0.15

    @property
    def data(self) -> bytes:
        return self.make()


def mp3(seconds: float, first: int = 0, counted: bool = True, rate: int = 16_000) -> bytes:
    """With or without a header that counts its frames, and without a tag."""
    options = {"write_xing": str(int(counted)), "id3v2_version": "0"}
    return encode(ladder(seconds, rate, 1, first), rate, "mp3", options=options)


def with_count(data: bytes, change: Callable[[int], int]) -> bytes:
    """An mp3 whose header counts another number of frames."""
    at = max(data.find(b"Xing"), data.find(b"Info")) + 8
    return data[:at] + change(int.from_bytes(data[at : at + 4], "big")).to_bytes(4, "big") + data[at + 4 :]


def wav(seconds: float = 4, **sizes: int) -> bytes:
    """With other sizes in its header: ``riff``, ``data``."""
    made = bytearray(sound_file(ladder(seconds), 16_000, "WAV", "PCM_16"))
    for name, at in (("riff", 4), ("data", made.find(b"data") + 4)):
        if name in sizes:
            made[at : at + 4] = sizes[name].to_bytes(4, "little")
    return bytes(made)


def au(size: int) -> bytes:
    made = sound_file(ladder(4), 16_000, "AU", "PCM_16")
    return made[:8] + size.to_bytes(4, "big") + made[12:]


def flac_without_length() -> bytes:
    made = bytearray(sound_file(ladder(4), 16_000, "FLAC"))
    made[8 + 13] &= 0xF0  # the 36 bits of STREAMINFO that count samples
    made[8 + 14 : 8 + 18] = bytes(4)
    return bytes(made)


def with_flipped_bit(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


def ogg(codec: str, seconds: float = 4, first: int = 0, rate: int = 16_000, channels: int = 1) -> bytes:
    return sound_file(ladder(seconds, rate, channels, first), rate, "OGG", codec)


def without_end_mark(data: bytes) -> bytes:
    """An ogg file whose last page does not say that it is the last."""
    at = data.rfind(b"OggS")
    page = data[at : at + 5] + bytes([data[at + 5] & ~4]) + data[at + 6 : at + 22] + bytes(4) + data[at + 26 :]
    return data[:at] + page[:22] + ogg_crc(page).to_bytes(4, "little") + page[26:]


def media_recorder(seconds: float = 4) -> bytes:
    """A webm as a browser records it: no duration, no index, clusters that do not tell their size."""
    made = encode(ladder(seconds, 48_000), 48_000, "webm", options={"live": "1"})
    return CLUSTER.sub(b"\x1f\x43\xb6\x75\x01" + b"\xff" * 7, made)


def phone(seconds: float = 4) -> bytes:
    """An m4a as a phone records it: the index at the end, and an edit list that leaves out the encoder's delay."""
    made = encode(ladder(seconds, 44_100), 44_100, "m4a")
    assert 0 < made.find(b"mdat") < made.find(b"moov") < made.find(b"elst"), "another layout than a phone's"
    return made


@lru_cache(maxsize=1)
def odd_files() -> dict[str, Odd]:
    """By name."""
    junk = bytes(np.random.default_rng(0).integers(0, 255, 184, dtype=np.uint8))
    bare = mp3(4, counted=False)
    middle = len(bare) // 2
    return {
        "mp3 joined from 3 s and 20 s": Odd(lambda: mp3(3) + mp3(20, 3), 23, slack=0.3),
        "mp3 whose header counts a tenth": Odd(lambda: with_count(mp3(4), lambda n: n // 10), 4),
        "mp3 whose header counts one too many": Odd(lambda: with_count(mp3(4), lambda n: n + 1), 4, mended=False),
        "mp3 behind three tags": Odd(lambda: TAG * 3 + bare, 4, mended=False),
        "mp3 behind a tag and 184 bytes of junk": Odd(lambda: TAG + junk + bare, 4),
        "mp3 behind an APEv2 tag": Odd(lambda: APE + bare, 4, mended=False),
        "mp3 with 50 bytes between frames": Odd(lambda: bare[:middle] + b"x" * 50 + bare[middle:], 4),
        "mp3 with a line break behind it": Odd(lambda: bare + b"\r\n", 4),
        "mp3 with HTML behind it": Odd(lambda: bare + b"<html>moved</html>" * 9, 4),
        "mp3 with an ID3v1 tag behind it": Odd(lambda: bare + b"TAG" + bytes(125), 4, mended=False),
        "mp3 with an APEv2 and an ID3v1 tag behind it": Odd(lambda: bare + APE + b"TAG" + bytes(125), 4, mended=False),
        "mp3 torn in its last frame": Odd(lambda: bare[:-10], 4),
        "vorbis, two streams": Odd(lambda: ogg("VORBIS", 3) + ogg("VORBIS", 3, 3), 6, mended=False),
        "opus, two streams": Odd(lambda: ogg("OPUS", 3, 0, 48_000) + ogg("OPUS", 3, 3, 48_000), 6, mended=False),
        "vorbis, a second stream of another rate": Odd(
            lambda: ogg("VORBIS", 3) + ogg("VORBIS", 3, 3, 24_000, 2), 6, mended=False
        ),
        "vorbis without its end mark": Odd(lambda: without_end_mark(ogg("VORBIS")), 4),
        "opus without its end mark": Odd(lambda: without_end_mark(ogg("OPUS")), 4),
        "vorbis with an ID3v1 tag behind it": Odd(lambda: ogg("VORBIS") + b"TAG" + bytes(125), 4, mended=False),
        "wav, sizes 0": Odd(lambda: wav(riff=0, data=0), 4),
        "wav, RIFF size 36, data size 0": Odd(lambda: wav(riff=36, data=0), 4),
        "wav, data size 0": Odd(lambda: wav(data=0), 4),
        "wav, size 44 too large": Odd(lambda: wav(data=128_044), 4),
        "wav, one byte missing": Odd(lambda: wav()[:-1], 4),
        "wav, size half of what is there": Odd(lambda: wav(data=64_000), 4),
        "wav with tags behind its samples": Odd(
            lambda: wav() + b"LIST" + (999).to_bytes(4, "little") + bytes(999), 4, False
        ),
        "wav, size unknown (a pipe)": Odd(lambda: wav(riff=0xFFFFFFFF, data=0xFFFFFFFF), 4, mended=False),
        "au, size 0": Odd(lambda: au(0), 4),
        "au, size unknown": Odd(lambda: au(0xFFFFFFFF), 4, mended=False),
        "flac without its length": Odd(flac_without_length, 4, mended=False),
        "flac behind an ID3v2 tag": Odd(lambda: TAG + encode(ladder(4), 16_000, "flac"), 4, mended=False),
        "m4a of a phone": Odd(phone, 4, mended=False),
        "m4a in fragments": Odd(
            lambda: encode(ladder(4), 16_000, "m4a", options={"movflags": "frag_keyframe+empty_moov"}), 4, mended=False
        ),
        "webm of a browser": Odd(media_recorder, 4, mended=False),
        "aac (ADTS)": Odd(lambda: encode(ladder(4), 16_000, "adts"), 4, mended=False),
    }
