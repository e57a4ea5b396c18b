"""What a file says of its own contents: FFmpeg plays what is there and does not say that something is missing.

Sizes and counts in the headers of wav, au and mp3, the pages of an ogg stream, and where one stream ends and another
begins.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# Layer III bit rates in kbit/s by header index, and sample rates in Hz (ISO/IEC 11172-3 and 13818-3).
_KBITS_V1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_V2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_TRAILERS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN", b"3DI")
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_LOST = 1 << 24  # bytes that are looked through for the next ogg page
_PROBING = {"max_probe_packets": "4"}  # FFmpeg looks 5 MB far into a wav for DTS in disguise: 64 kB will do
_MOMENT = 0.1  # seconds: less behind the samples of a wav is no sound
_JUNK = 65_536  # bytes before the first frame that players look through
# Sizes near the end of the 31- or 32-bit range are what a writer to a pipe leaves: length unknown.
_UNKNOWN = 0x7FFF0000


@dataclass(frozen=True)
class Structure:
    """What a file's headers say.

    Args:
        parts: (first byte, byte after the last) of streams that follow one another; most files are one.
        promised: seconds that the header counts, None where it counts none or FFmpeg tells.
        problems: what is wrong without making the file unreadable, a few words each.
        options: for FFmpeg's demuxer.
        patch: (position, bytes) that make it readable.
        measured: seconds of samples that are there, None where the headers do not tell.
        dense: whether a long run of zeros in it is no sound: what was compressed has none.
    """

    parts: tuple[tuple[int, int], ...]
    promised: float | None = None
    problems: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    patch: tuple[int, bytes] | None = None
    measured: float | None = None
    dense: bool = False


def inspect(data) -> Structure:
    """Looks through the structure of a file of any format.

    Args:
        data: bytes-like, the whole file.
    """
    start = skip_tags(data)
    magic = bytes(data[start : start + 12])
    if _is_wav(magic):
        return _wav(data, start)
    if magic[:4] == b".snd" and magic[8:] == bytes(4) and len(data) > start + 24:
        problem = "its header says that it has no samples, which is not so"
        return Structure(_whole(data), problems=(problem,), patch=(start + 8, b"\xff" * 4))
    if magic[:4] == b"OggS":
        return _ogg(data, start)
    if magic[:4] == b"\x1aE\xdf\xa3":
        torn = ("its last block is incomplete",) if _is_torn_ebml(data, start) else ()
        return Structure(_whole(data), problems=torn, dense=True)
    if magic[:4] == b"fLaC":
        return Structure(_whole(data), dense=True)
    if magic[:4] == b"FORM" or magic[4:8] == b"ftyp":
        return Structure(_parts(data, _joined(data, start)))
    if magic[:4] in (b"caff", b"riff"):
        return Structure(_whole(data))
    first = _first_frame(data, start)
    if first is None:
        return Structure(_whole(data))
    junk = f"{first - start} bytes in front of the first mp3 frame belong to none"
    return Structure(_whole(data), _info_seconds(data, first), (junk,) if first > start else (), dense=True)


def _whole(data) -> tuple[tuple[int, int]]:
    return ((0, len(data)),)


def _parts(data, begins: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(begins, [*begins[1:], len(data)], strict=True))


def is_trailer(data: bytes) -> bool:
    """Whether bytes behind the audio are tags or padding."""
    return data.startswith(_TRAILERS) or not data.strip(b"\0")


# Tags


def skip_tags(data) -> int:
    """The byte behind the ID3v2 and APEv2 tags, and their padding, that a file begins with."""
    position, size = 0, len(data)
    while True:
        after = _skip_ape(data, _skip_id3(data, position))
        if after == position:
            return min(position, size)
        position = after
        while position < min(size, after + _JUNK) and data[position] == 0:  # some taggers pad the tag
            position += 1


def _skip_id3(data, position: int) -> int:
    header = bytes(data[position : position + 10])
    if header[:3] != b"ID3" or len(header) < 10:
        return position
    size = 0
    for byte in header[6:]:
        size = size << 7 | byte & 0x7F
    return position + 10 + size + (10 if header[5] & 0x10 else 0)


def _skip_ape(data, position: int) -> int:
    header = bytes(data[position : position + 32])
    if header[:8] != b"APETAGEX" or len(header) < 32:
        return position
    return position + 32 + int.from_bytes(header[12:16], "little")


# wav


def _is_wav(magic: bytes) -> bool:
    return magic[:4] in (b"RIFF", b"RF64") and magic[8:12] == b"WAVE"


def _wav(data, start: int) -> Structure:
    """A wav, or wavs that were joined byte by byte, of which FFmpeg plays the first."""
    begins, (last, following) = [0], _one_wav(data, start)
    while following is not None:
        begins.append(following)
        last, following = _one_wav(data, following)
    if len(begins) == 1:
        return last
    return Structure(_parts(data, begins), problems=last.problems, options=last.options)


def _one_wav(data, start: int) -> tuple[Structure, int | None]:
    """A wav up to the end of the file, and where another one begins behind its samples."""
    size, position = len(data), start + 12
    bytes_a_second, long_size = 0, None
    while position + 8 <= size:
        kind, length = bytes(data[position : position + 4]), _little(data, position + 4)
        body = position + 8
        if kind == b"fmt ":
            bytes_a_second = _byte_rate(data, body)
        elif kind == b"ds64":
            long_size = int.from_bytes(bytes(data[body + 8 : body + 16]), "little")
        elif kind == b"data":
            length = long_size if long_size is not None and length == 0xFFFFFFFF else length
            behind = (body + length, body + length + length % 2)  # some leave the padding out
            following = next((at for at in behind if _is_wav(bytes(data[at : at + 12]))), None)
            return _samples(data, body, length, bytes_a_second), following
        position = body + length + length % 2
    return Structure(_whole(data)), None


def _samples(data, body: int, length: int, bytes_a_second: int) -> Structure:
    parts, there = _whole(data), len(data) - body
    if not bytes_a_second:
        return Structure(parts, options=_PROBING)
    seconds, all_of_it = length / bytes_a_second, there / bytes_a_second
    if length > there:
        if _UNKNOWN <= length < 1 << 32:
            return Structure(parts, options=_PROBING, measured=all_of_it)
        problem = f"{there} of the {length} bytes of samples that its header counts are there"
        return Structure(parts, seconds, (problem,), _PROBING, measured=all_of_it)
    behind = body + length
    rest = bytes(data[behind : behind + 9])
    goes_on = len(rest) == 9 and not _is_chunk(rest[:4]) and not _is_chunk(rest[1:5])  # some leave the padding out
    if goes_on and (any(rest) or length == 0) and there - length > bytes_a_second * _MOMENT:
        problem = f"its header counts {length} bytes of samples, {there} are there"
        return Structure(parts, None, (problem,), _PROBING | {"ignore_length": "1"}, measured=all_of_it)
    return Structure(parts, seconds, (), _PROBING, measured=seconds)


def _is_chunk(name: bytes) -> bool:
    return len(name) == 4 and all(0x20 <= byte < 0x7F for byte in name)


def _byte_rate(data, body: int) -> int:
    """Bytes a second: for plain samples, by their width, which decoders go by."""
    kind, rate, stated = _little(data, body, 2), _little(data, body + 4), _little(data, body + 8)
    return rate * _little(data, body + 12, 2) if kind in (1, 3, 0xFFFE) else stated


def _little(data, position: int, width: int = 4) -> int:
    return int.from_bytes(bytes(data[position : position + width]), "little")


# aiff and mp4


def _joined(data, position: int) -> list[int]:
    """Where files begin that were joined byte by byte, of which FFmpeg plays the first.

    Source: ISO/IEC 14496-12 §4.2 (boxes); EA IFF 85 (FORM).
    """
    begins, size, start = [0], len(data), position
    while position + 8 <= size:
        head = bytes(data[position : position + 16])
        is_form = head[:4] == b"FORM"
        if position > start and (is_form or head[4:8] == b"ftyp"):
            begins.append(position)
        length = int.from_bytes(head[:4], "big")
        if is_form:
            length = 8 + int.from_bytes(head[4:8], "big")
            length += length % 2
        elif length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: up to the end of the file
            break
        position += length
    return begins


# mp3


def mp3_frame_bytes(header: bytes) -> int | None:
    """Bytes of the layer III frame with this header; None if it is none.

    Source: ISO/IEC 11172-3 §2.4.1.3.
    """
    found = _frame(header, 0)
    return None if found is None else found[1]


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


def _first_frame(data, start: int) -> int | None:
    """Where the first frame that another one follows begins, at most 64 kB behind the tags."""
    for match in _SYNC.finditer(bytes(data[start : start + _JUNK])):
        position = start + match.start()
        frame = _frame(data, position)
        if frame is not None:
            following = _frame(data, position + frame[1])
            if following is not None and following[0] == frame[0]:
                return position
    return None


def _info_seconds(data, position: int) -> float | None:
    """Seconds of the frames that an Info frame at ``position`` counts; None if it counts none or is none.

    Source: the Xing/Info header of LAME.
    """
    version, rate_index = data[position + 1] >> 3 & 3, data[position + 2] >> 2 & 3
    mono, version1 = data[position + 3] >> 6 == 3, version == 3
    tag = position + 4 + ((17 if mono else 32) if version1 else (9 if mono else 17))
    if bytes(data[tag : tag + 4]) not in (b"Xing", b"Info") or not data[tag + 7] & 1:
        return None
    frames = int.from_bytes(bytes(data[tag + 8 : tag + 12]), "big")
    return frames * (1152 if version1 else 576) / _RATES[version][rate_index] if frames else None


# matroska and webm


def _is_torn_ebml(data, position: int) -> bool:
    """Whether the last element is longer than the file.

    Source: RFC 8794 §4 (variable-size integers), §6.2 (unknown sizes); RFC 9559 (Segment, Cluster).
    """
    size = len(data)
    while position < size:
        head = bytes(data[position : position + 12])
        id_bytes = 9 - head[0].bit_length()
        if id_bytes > 4:
            return False
        if len(head) <= id_bytes:
            return True
        if not head[id_bytes]:
            return False
        size_bytes = 9 - head[id_bytes].bit_length()
        unknown = (1 << 7 * size_bytes) - 1
        length = int.from_bytes(head[id_bytes : id_bytes + size_bytes], "big") & unknown
        position += id_bytes + size_bytes
        if head[:id_bytes] in (_SEGMENT, _CLUSTER):
            if length != unknown and position + length > size:
                return True
            continue  # with its elements
        position += length
    return position > size


# ogg


def _ogg(data, start: int) -> Structure:
    """Follows an ogg file from page to page and checks every page's checksum.

    Source: RFC 3533 §6 (pages), §4 (streams one after another).
    """
    begins, problems, ended, opening = [], [], False, False
    for position, flags in _pages(data, start, problems):
        if flags & 2 and not opening:
            if begins and not ended:
                problems.append("a stream in it lacks its end mark")
            begins.append(position)
        opening, ended = bool(flags & 2), bool(flags & 4)
    if begins and not ended:
        problems.append("its last page is not marked as the end")
    parts = _parts(data, begins) if begins else _whole(data)
    return Structure(parts, problems=tuple(dict.fromkeys(problems)), dense=True)


def _pages(data, position: int, problems: list[str]) -> Iterator[tuple[int, int]]:
    """(position, flags) of the whole pages; what else there is becomes a problem."""
    size = len(data)
    while position < size:
        header = bytes(data[position : position + 27])
        if header[:4] != b"OggS":
            following = data.find(b"OggS", position, min(size, position + _LOST))
            following = size if following < 0 else following
            if not is_trailer(bytes(data[position : min(following, position + _JUNK)])):
                problems.append(f"{following - position} bytes at byte {position} belong to no page")
            position = following
            continue
        body = position + 27 + (header[26] if len(header) == 27 else size)
        end = body + sum(bytes(data[position + 27 : body]))
        if end > size:
            problems.append("its last page is incomplete")
            return
        page = header[:22] + bytes(4) + header[26:] + bytes(data[position + 27 : end])
        if ogg_crc(page) == int.from_bytes(header[22:26], "little"):
            yield position, header[5]
            position = end
        else:
            problems.append(f"damaged at byte {position} (wrong checksum)")
            position += 4


def ogg_crc(page: bytes) -> int:
    """The checksum of an ogg page whose own is zero."""
    # zlib's CRC-32 is the bit-reversed twin of ogg's, with the register inverted before and after.
    mirrored = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
