"""Detects damage that audio decoders ignore: incomplete mp3 and ogg streams, data chunks cut short.

libmpg123 and libogg resynchronise after damage and return less audio, or other audio, with no error. Both formats say
enough about their own structure to notice: an mp3 frame gives its own length, an ogg page has a checksum.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

# Layer III bit rates in kbit/s by header index, and sample rates in Hz (ISO/IEC 11172-3 and 13818-3).
_KBITS_V1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_V2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_TRAILERS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"3DI")
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Mp3Walk:
    """What walking an mp3 stream found.

    Args:
        start: byte of the first frame that holds sound.
        frames: complete frames from there on.
        counted: whether an Info header gives that number, so that the decoder knows the length.
        cut: whether the stream ends inside a frame.
    """

    start: int
    frames: int
    counted: bool
    cut: bool


def is_mp3(data) -> bool:
    """Whether the bytes begin as an mp3 file does: a layer III frame header, perhaps after an ID3 tag."""
    return _frame(data, _first_byte(data)) is not None


def walk_mp3(data) -> Mp3Walk:
    """Follows an mp3 stream from frame header to frame header.

    Args:
        data: bytes-like, the whole file.

    Returns:
        ``Mp3Walk``.

    Raises:
        ValueError: bytes between two frames that belong to neither, or fewer frames than the Info header counts.

    Source: ISO/IEC 11172-3 §2.4.1.3 (frame header); the Xing/Info header of LAME.
    """
    size = len(data)
    position = _first_byte(data)
    first = _frame(data, position)
    if first is None:
        raise ValueError(f"not an mp3 stream: no frame header at byte {position}")
    kind, length = first
    promised = _info_count(data, position)
    start = position = position + (length if promised is not None else 0)
    frames, cut = 0, False
    while position < size:
        frame = _frame(data, position)
        if frame is None or frame[0] != kind:
            after_tag = _skip_id3(data, position)
            if after_tag > position:
                position = after_tag
                continue
            rest = bytes(data[position:])
            if rest.startswith(_TRAILERS) or not rest.strip(b"\0"):
                break
            raise ValueError(f"damaged mp3: no frame header at byte {position} of {size}")
        if position + frame[1] > size:
            cut = True
            break
        frames += 1
        position += frame[1]
    if promised and frames < promised:
        raise ValueError(f"truncated mp3: {frames} of {promised} frames are there")
    if frames == 0:
        raise ValueError("truncated mp3: no complete frame")
    return Mp3Walk(start, frames, bool(promised), cut)


def with_frame_count(data, walk: Mp3Walk) -> bytes:
    """The stream behind an Info header that counts its frames.

    libmpg123 otherwise guesses the length from the first bit rate, and libsndfile stops there.

    Args:
        data: bytes-like, the whole file.
        walk: what ``walk_mp3`` found in it.
    """
    stream = bytes(data[walk.start :])
    header = bytearray(stream[:4])
    header[1] |= 1  # no checksum
    header[2] = header[2] & 0x0F | 8 << 4  # a bit rate that leaves room: 64 or 112 kbit/s
    frame = _frame(header, 0)
    assert frame is not None, "the stream begins with a frame"
    header += bytes(frame[1] - 4)
    tag = _info_offset(header, 0)
    header[tag : tag + 12] = b"Xing" + (1).to_bytes(4, "big") + walk.frames.to_bytes(4, "big")
    return bytes(header) + stream


def _frame(data, position: int) -> tuple[tuple[int, int], int] | None:
    """(stream kind, bytes) of the layer III frame whose header is at ``position``; None if there is none."""
    header = bytes(data[position : position + 4])
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, rate_index, kbits_index = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if version == 1 or rate_index == 3 or kbits_index in (0, 15):
        return None
    kbits = (_KBITS_V1 if version == 3 else _KBITS_V2)[kbits_index]
    eighth = 144 if version == 3 else 72  # of the samples in a frame
    return (version, rate_index), eighth * kbits * 1000 // _RATES[version][rate_index] + (header[2] >> 1 & 1)


def _info_count(data, position: int) -> int | None:
    """Frames counted by an Info frame at ``position``; 0 if it does not count them, None if it is no Info frame."""
    tag = _info_offset(data, position)
    if bytes(data[tag : tag + 4]) not in (b"Xing", b"Info"):
        return None
    counts_frames = int.from_bytes(data[tag + 4 : tag + 8], "big") & 1
    return int.from_bytes(data[tag + 8 : tag + 12], "big") if counts_frames else 0


def _info_offset(data, position: int) -> int:
    mono, version1 = data[position + 3] >> 6 == 3, data[position + 1] >> 3 & 3 == 3
    return position + 4 + ((17 if mono else 32) if version1 else (9 if mono else 17))


def _first_byte(data) -> int:
    after = position = _skip_id3(data, 0)
    while after and position < min(len(data), after + 65536) and data[position] == 0:  # some taggers pad the tag
        position += 1
    return position


def _skip_id3(data, position: int) -> int:
    header = bytes(data[position : position + 10])
    if header[:3] != b"ID3" or len(header) < 10:
        return position
    size = 0
    for byte in header[6:]:
        size = size << 7 | byte & 0x7F
    return position + 10 + size + (10 if header[5] & 0x10 else 0)


def check_ogg(data) -> None:
    """Follows an ogg stream from page to page and checks every page's checksum.

    Args:
        data: bytes-like, the whole file.

    Raises:
        ValueError: a damaged page, or no page that ends the stream.

    Source: RFC 3533 §6.
    """
    position, size, ended = 0, len(data), False
    while position < size:
        header = bytes(data[position : position + 27])
        if header[:4] != b"OggS":
            if not bytes(data[position:]).strip(b"\0"):
                break
            raise ValueError(f"damaged ogg: no page at byte {position} of {size}")
        if len(header) < 27:
            raise ValueError("truncated ogg: the last page is incomplete")
        body = position + 27 + header[26]
        end = body + sum(data[position + 27 : body])
        if end > size or body > size:
            raise ValueError("truncated ogg: the last page is incomplete")
        page = header[:22] + bytes(4) + header[26:] + bytes(data[position + 27 : end])
        if _ogg_crc(page) != int.from_bytes(header[22:26], "little"):
            raise ValueError(f"damaged ogg: wrong checksum in the page at byte {position} of {size}")
        ended = bool(header[5] & 4)
        position = end
    if not ended:
        raise ValueError("truncated ogg: no page ends the stream")


def _ogg_crc(page: bytes) -> int:
    # zlib's CRC-32 is the bit-reversed twin of ogg's, with the register inverted before and after.
    mirrored = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def check_chunk(log: str) -> None:
    """Reads libsndfile's log of a wav, aiff or au file for a data chunk longer than the file.

    Args:
        log: ``SoundFile.extra_info``.

    Raises:
        ValueError: the chunk's stated size is an ordinary one and the file ends before it.
    """
    match = re.search(r"^\s*(?:data|SSND|Data Size)\s*:\s*(\d+) \(should be (\d+)\)", log, re.MULTILINE)
    # 0 and sizes near the end of the 31- or 32-bit range are what a writer to a pipe leaves: length unknown.
    if match and int(match[2]) < int(match[1]) < 0x7FFF0000:
        raise ValueError(f"truncated: {match[2]} of {match[1]} bytes of samples are there")
