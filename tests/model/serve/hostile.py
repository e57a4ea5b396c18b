"""Recordings that nobody should send: made to be misread, or real ones damaged at random."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator

import av
import numpy as np
import soundfile

from afn_model.audio.container import ogg_crc

ALL = 200
MAX_SIZE = 0xFFFFFFFF


def sound(seconds: float = 0.5, rate: int = 16_000, channels: int = 1, container: str = "WAV", **options) -> bytes:
    """The bytes of a good file."""
    at = np.arange(int(seconds * rate)) / rate
    samples = np.stack([0.3 * np.sin(2 * np.pi * (220 + 50 * channel) * at) for channel in range(channels)], 1)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, **options)
    return file.getvalue()


def by_ffmpeg(container: str, codec: str, seconds: float = 0.5) -> bytes:
    """A good file of a kind that libsndfile does not write."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=48_000, layout="mono")
        rng = np.random.default_rng(0)
        for start in range(0, int(48_000 * seconds), 960):
            samples = (rng.standard_normal((1, 960)) * 3000).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48_000, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def page(packets: list[bytes], granule: int, number: int, flags: int = 0, serial: int = 7) -> bytes:
    """A page of an ogg stream with short packets (RFC 3533 §6)."""
    head = struct.pack("<4sBBqIII", b"OggS", 0, flags, granule, serial, number, 0)
    made = head + bytes([len(packets), *map(len, packets)]) + b"".join(packets)
    return made[:22] + ogg_crc(made).to_bytes(4, "little") + made[26:]


def silence(seconds: float, channels: int = 1) -> bytes:
    """Opus that says nothing for hours: 115 bytes a second, 16,000 times fewer than its samples."""
    opus = b"OpusHead" + struct.pack("<BBHIhB", 1, channels, 312, 48_000, 0, 0)
    tags = b"OpusTags" + struct.pack("<I4sI", 4, b"none", 0)
    packet = b"\xfb\x06" + b"\xff\xfe" * 6  # six frames of 20 ms (RFC 6716 §3.2.5)
    pages, count = [page([opus], 0, 0, 2), page([tags], 0, 1)], round(seconds / 0.12)
    for first in range(0, count, 255):
        some = min(255, count - first)
        last = 4 if first + some == count else 0
        pages.append(page([packet] * some, (first + some) * 5760, len(pages), last))
    return b"".join(pages)


def wav_of(body: bytes = b"\0\1" * 8000, **fields: int) -> bytes:
    """A WAV whose header says what it is told to."""
    said = {"kind": 1, "channels": 1, "rate": 16_000, "bytes": 32_000, "align": 2, "bits": 16, "size": len(body)}
    said |= {"riff": len(body) + 36} | fields
    form = struct.pack("<HHIIHH", *(said[name] for name in ("kind", "channels", "rate", "bytes", "align", "bits")))
    riff = b"RIFF" + struct.pack("<I", said["riff"]) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return riff + b"data" + struct.pack("<I", said["size"]) + body


def box(kind: bytes, body: bytes, size: int | None = None) -> bytes:
    return struct.pack(">I", len(body) + 8 if size is None else size) + kind + body


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def nested(kind: bytes, depth: int) -> bytes:
    found = b""
    for _ in range(depth):
        found = box(kind, found)
    return found


def forged_flac() -> bytes:
    """655,350 Hz and 8 channels (RFC 9639 §8.2: 20 bits of rate, 3 of channels less one)."""
    flac = sound(0.2, 48_000, 8, "FLAC")
    packed = int.from_bytes(flac[18:26], "big")
    return patched(flac, 18, (packed & ((1 << 44) - 1) | 655_350 << 44).to_bytes(8, "big"))


def id3(size: int, body: bytes = b"") -> bytes:
    return b"ID3\4\0\0" + bytes([size >> shift & 0x7F for shift in (21, 14, 7, 0)]) + body


def archives() -> Iterator[tuple[str, bytes]]:
    good, file = sound(), io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", good)
        archive.writestr("../../b.wav", bytes(1 << 20))
    yield "zip", file.getvalue()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("a.wav")
        entry.size = len(good)
        archive.addfile(entry, io.BytesIO(good))
    yield "tar", file.getvalue()
    yield "gz", gzip.compress(good)
    yield "gz bomb", gzip.compress(bytes(1 << 22))


def playlists(target: str = "file:///etc/passwd") -> Iterator[tuple[str, bytes]]:
    """Text that tells a player to open something else."""
    name = target.removeprefix("file://")
    yield "ffconcat", f"ffconcat version 1.0\nfile '{target}'\n".encode()
    yield "ffconcat, a path", f"ffconcat version 1.0\nfile {name}\nduration 10\n".encode()
    yield "hls", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n".encode()
    yield "m3u", f"#EXTM3U\n{target}\n".encode()
    yield "pls", f"[playlist]\nFile1={target}\nNumberOfEntries=1\n".encode()
    yield "sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n"
    yield "dash", f'<?xml version="1.0"?><MPD><BaseURL>{target}</BaseURL></MPD>'.encode()
    yield "an address", target.encode()
    alias = box(b"dref", bytes(7) + b"\1" + box(b"url ", bytes(4) + target.encode() + b"\0"))
    yield "mp4 of elsewhere", box(b"ftyp", b"M4A \0\0\0\0") + box(b"moov", box(b"trak", box(b"minf", alias)))


def forged() -> Iterator[tuple[str, bytes]]:
    """Files that are made to be misread."""
    yield from (("a byte", b"\0"), ("four letters", b"RIFF"), ("zeros", bytes(5000)), ("text", b"hello " * 400))
    yield from (("html", b"<html><script>"), ("elf", b"\x7fELF\2\1\1" + bytes(99)), ("pdf", b"%PDF-1.7\n" * 9))
    yield "noise", random.Random(0).randbytes(20_000)
    headers: dict[str, dict[str, int]] = {
        "no samples": {"size": 0, "riff": 36},
        "2^32 bytes": {"size": MAX_SIZE, "riff": MAX_SIZE},
        "riff of nothing": {"riff": 0},
        "0 Hz": {"rate": 0, "bytes": 0},
        "4 GHz": {"rate": MAX_SIZE, "bytes": MAX_SIZE},
        "1 Hz": {"rate": 1, "bytes": 2},
        "no channel": {"channels": 0, "align": 0},
        "512 channels": {"channels": 512, "align": 1024},
        "65535 channels": {"channels": 65_535, "align": 65_535},
        "0 bits": {"bits": 0, "align": 0},
        "1 bit": {"bits": 1},
        "64 bits": {"bits": 64, "align": 8},
        "65535 bits": {"bits": 65_535, "align": 65_535},
        "codec 0x5555": {"kind": 0x5555},
        "mp3 in wav": {"kind": 0x55, "align": 1, "bits": 0},
        "adpcm": {"kind": 2, "align": 65_535, "bits": 4},
    }
    yield from ((f"wav: {name}", wav_of(**fields)) for name, fields in headers.items())
    yield "wav: header alone", wav_of(b"")
    yield "wav: long fmt", wav_of()[:16] + struct.pack("<I", 1 << 31) + wav_of()[20:]
    yield "wav: data first", wav_of()[:12] + wav_of()[36:] + wav_of()[12:36]
    floats = {"kind": 3, "bits": 32, "align": 4, "bytes": 64_000}
    for name, value in (("nan", np.nan), ("inf", np.inf), ("loud", 3e38), ("tiny", 1e-45)):
        yield f"wav: {name}", wav_of(np.full(4000, value, np.float32).tobytes(), **floats)
    sizes = b"ds64" + struct.pack("<IQQQI", 28, 1 << 63, 1 << 63, 1 << 62, 0)
    yield "rf64: 2^63 bytes", b"RF64" + struct.pack("<I", MAX_SIZE) + b"WAVE" + sizes + wav_of(size=MAX_SIZE)[12:]
    yield "wav in wav", wav_of(wav_of(wav_of()))
    yield "many wavs", wav_of(b"\0\1" * 400) * 40
    yield "flac: 655350 Hz x 8", forged_flac()
    flac = sound(0.3, container="FLAC")
    yield "flac: 2^36 samples", patched(flac, 21, bytes([flac[21] | 0xF]) + b"\xff" * 4)
    yield "flac: empty blocks", patched(flac, 8, b"\xff\xff\0\0")
    yield "flac: no frames", flac[:42]
    yield "flac: long picture", flac[:4] + b"\6\xff\xff\xff" + flac[4:]
    mp3 = sound(0.5, container="MP3")
    yield "mp3: tag of 256 MB", id3((1 << 28) - 1) + mp3
    yield "mp3: many tags", id3(0) * 4000 + mp3
    yield "mp3: tag in tag", id3(len(mp3) + 10, id3(len(mp3), mp3)) + mp3
    yield "mp3: ogg in a tag", id3(2000, sound(container="OGG")[:2000]) + mp3
    found = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    yield "mp3: 2^32 frames", mp3 if found < 0 else patched(mp3, found + 4, b"\0\0\0\3" + b"\xff" * 8)
    yield "opus: 40 min of silence", silence(2400)
    yield "opus: 255 channels", silence(1, 255)
    yield "opus: no end", silence(60)[:-3000]
    yield "opus: late", patched(silence(2), 6, b"\xff" * 7 + b"\x7f")
    yield "ogg: beginnings alone", b"".join(page([b"\1vorbis" + bytes(23)], 0, 0, 2, serial) for serial in range(300))
    yield "ogg: no checksum", patched(sound(container="OGG"), 22, b"\0\0\0\0")
    yield "ogg: empty pages", b"".join(page([], -1, number) for number in range(500))
    m4a = by_ffmpeg("ipod", "aac")
    yield "m4a: index missing", m4a[: m4a.find(b"moov") - 4]
    yield "m4a: 2^32 samples", patched(m4a, m4a.find(b"stsz") + 12, b"\xff" * 4)
    yield "m4a: 2^32 chunks", patched(m4a, m4a.find(b"stco") + 8, b"\xff" * 8)
    yield "m4a: deep", box(b"ftyp", b"M4A \0\0\0\0") + nested(b"moov", 3000)
    yield "m4a: long box", box(b"ftyp", b"M4A \0\0\0\0") + box(b"mdat", b"\xff" * 40, 1) + m4a
    yield "aiff", b"FORM" + struct.pack(">I", MAX_SIZE) + b"AIFFCOMM" + struct.pack(">IHIH", 18, 65_535, MAX_SIZE, 64)
    yield "au", b".snd" + struct.pack(">IIIII", MAX_SIZE, MAX_SIZE, 3, MAX_SIZE, MAX_SIZE) + bytes(2000)
    yield "caf", b"caff\0\1\0\0desc" + struct.pack(">Qd", 32, float("inf")) + b"lpcm" + b"\xff" * 20
    yield "w64", b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\4\xc1\0\0" + b"\xff" * 200
    yield "ebml", b"\x1aE\xdf\xa3" + b"\x01" + b"\xff" * 7 + b"\x18\x53\x80\x67\x01" + b"\xff" * 50
    yield "voc", b"Creative Voice File\x1a" + b"\xff" * 300
    yield from archives()
    yield from playlists()


def damaged(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Real files with something changed."""
    draw = random.Random(seed)
    good = {name: sound(container=name) for name in ("WAV", "FLAC", "MP3", "OGG", "AIFF", "CAF", "W64")}
    good |= {"opus": sound(container="OGG", subtype="OPUS"), "m4a": by_ffmpeg("ipod", "aac")}
    good |= {"webm": by_ffmpeg("webm", "libopus"), "mpegts": by_ffmpeg("mpegts", "mp2")}

    def flipped(data: bytearray) -> bytearray:
        for _ in range(draw.choice((1, 8, 64))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return data

    def headed(data: bytearray) -> bytearray:
        at = draw.randrange(min(200, len(data) - 4))
        data[at : at + 4] = draw.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", draw.randbytes(4)))
        return data

    def zeroed(data: bytearray) -> bytearray:
        at = draw.randrange(len(data))
        data[at : at + 500] = bytes(len(data[at : at + 500]))
        return data

    changes: dict[str, Callable[[bytearray], bytearray]] = {
        "cut": lambda data: data[: draw.randrange(1, len(data))],
        "flipped": flipped,
        "header": headed,
        "zeroed": zeroed,
        "joined": lambda data: data + draw.choice(list(good.values())),
        "spliced": lambda data: data[: len(data) // 2] + draw.choice(list(good.values())),
        "repeated": lambda data: data[:300] + data[100:],
    }
    for number in range(count):
        name, change = draw.choice(list(good)), draw.choice(list(changes))
        yield f"{name}, {change} {number}", bytes(changes[change](bytearray(good[name])))


def hostile(count: int = ALL, seed: int = 0) -> list[tuple[str, bytes]]:
    """(what it is, bytes) of files, about as many forged as damaged ones."""
    made = list(forged())
    if count < ALL:
        random.Random(seed).shuffle(made)
        made = made[: count // 2]
    return made + list(damaged(count - len(made), seed))
