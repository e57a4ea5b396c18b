"""Recordings for a whole run of curation: a folder as a downloader leaves it, and the truth beside it.

    recordings/NAME.flac, NAME.info.json     as yt-dlp names and writes them, in several formats
    truth.jsonl                              {"source_id", "events"} of each recording
    made.jsonl                               {"url", "kind", "of", "language", "seconds", "source_id", "events"}

Among plain recordings are what a run must find: copies in other encodings and of the same bytes, the same talk by
another voice, clips of a benchmark, broken and silent files, licences that deny, a telephone number.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from afn_model.audio.decode import load_audio
from afn_model.audio.encode import flac, wav
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.curate.stages.fetch import digest_of
from afn_model.curate.stand_ins.scenes import HeardScene, cast, mixed, sounds, talk
from afn_model.curate.stand_ins.spoken import CHANNELS, DENIED, PRIVATE, SENTENCES, TITLES
from afn_model.files import write_json, write_rows
from afn_model.world.espeak import Espeak
from afn_model.world.words import Speaker

RECORDINGS, TRUTH, MADE = "recordings", "truth.jsonl", "made.jsonl"
PLANTED: dict[str, int] = {
    "mp3": 1, "vorbis": 1, "cropped": 1, "bytes": 1, "retold": 1, "benchmark": 2, "broken": 2, "silent": 1, "denied": 2,
    "private": 1,
}  # fmt: skip
COPIES = ("mp3", "vorbis", "cropped", "bytes", "retold")  # kinds that are another recording once more
LONG = 36  # sentences of a long recording
SUFFIXES = (".flac", ".wav", ".flac", ".flac", ".mp3", ".flac", ".opus")


@dataclass
class _Made:
    """A recording that is not written yet."""

    kind: str
    pcm: np.ndarray
    events: list[dict[str, Any]]
    channel: str
    licence: str
    language: str
    genre: str
    suffix: str = ".flac"
    of: str = ""
    raw: bytes = b""
    said: list[str] = field(default_factory=list)


class RecordingMaker:
    """Makes recordings; all is a function of the seed and of what was made before.

    Args:
        espeak: that speaks.
        seed: of what is drawn.
    """

    def __init__(self, espeak: Espeak, seed: int):
        self.espeak, self.seed, self.used, self.count = espeak, seed, set[Speaker](), 0

    def scene(self) -> HeardScene:
        self.count += 1
        return HeardScene(self.espeak, np.random.default_rng([self.seed, self.count]))

    def plain(self, channel: str, sentences: int, kind: str = "plain") -> _Made:
        """A recording of a channel with so many sentences or sounds."""
        licence, language, genre = CHANNELS[channel]
        scene = self.scene()
        said: list[str] = []
        if genre == "sounds":
            sounds(scene, sentences)
        else:
            known = SENTENCES[language]
            said = [known[place % len(known)] for place in self._order(scene, len(known), sentences)]
            self._told(scene, genre, said, language)
        return _Made(kind, scene.samples(), scene.truth(), channel, licence, language, genre, said=said)

    def _order(self, scene: HeardScene, known: int, count: int) -> list[int]:
        return [int(one) for _ in range(-(-count // known)) for one in scene.rng.permutation(known)][:count]

    def _told(self, scene: HeardScene, genre: str, said: Sequence[str], language: str) -> None:
        voices = cast(scene.rng, language, self.used, {"conversation": 2, "panel": 3}.get(genre, 1))
        if genre == "mixed":
            mixed(scene, voices, said, language)
        else:
            talk(scene, voices, said, language, rings=len(said) >= LONG)

    def planted(self, kind: str, of: _Made, clip: np.ndarray | None, number: int) -> _Made:
        """A recording that a run must find.

        Args:
            kind: of ``PLANTED``.
            of: a plain one that copies are made of.
            clip: of a benchmark.
            number: of those of its kind before.
        """
        if kind in COPIES:
            return self._copy(kind, of)
        if kind == "silent":
            pcm = (3e-5 * self.scene().rng.standard_normal(12 * SAMPLE_RATE)).astype(np.float32)
            return _Made(kind, pcm, [], "Field Sounds", "CC BY 4.0", "", "sounds")
        made = self.plain("Harbour Radio", 3, kind)
        if kind == "denied":
            made.licence = DENIED[number % len(DENIED)]
        elif kind == "broken":
            raw = _bytes(made.pcm, ".flac")
            made.raw = raw[: len(raw) // 3] if number % 2 else np.random.default_rng(self.seed).bytes(40_000)
        elif kind == "private":
            scene = self.scene()
            self._told(scene, "talk", [made.said[0], PRIVATE, made.said[1]], "en")
            made.pcm, made.events = scene.samples(), scene.truth()
        elif kind == "benchmark" and clip is not None:
            made.pcm = clip if number % 2 else np.concatenate([made.pcm, clip])
            made.events, made.suffix = ([] if number % 2 else made.events), ".mp3" if number % 2 else ".flac"
        return made

    def _copy(self, kind: str, of: _Made) -> _Made:
        made = _Made(kind, of.pcm, of.events, of.channel, of.licence, of.language, of.genre)
        if kind == "retold":
            scene = self.scene()
            self._told(scene, of.genre, of.said, of.language)
            made.pcm, made.events = scene.samples(), scene.truth()
        elif kind == "cropped":
            first, last = 3 * SAMPLE_RATE, len(of.pcm) - 2 * SAMPLE_RATE
            made.pcm = of.pcm[first:last]
            made.events = [
                {**one, "start": round(one["start"] - 3.0, 3), "end": round(one["end"] - 3.0, 3)} for one in of.events
            ]
            made.events = [
                one for one in made.events if one["start"] >= 0 and one["end"] <= len(made.pcm) / SAMPLE_RATE
            ]
        made.suffix = {"mp3": ".mp3", "vorbis": ".ogg"}.get(kind, ".flac")
        return made


def write_recordings(
    folder: str | Path,
    *,
    plain: int = 47,
    planted: Mapping[str, int] = PLANTED,
    long: int = 4,
    clips: Sequence[str | Path] = (),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Writes recordings and their truth; what stands in ``made.jsonl`` is returned. It is written last.

    Args:
        folder: that they are written to.
        plain: recordings in which there is nothing to find.
        planted: {kind: how many} of those in which there is.
        long: of the plain ones that are two minutes or more.
        clips: recordings of a benchmark.
        seed: of what is drawn.

    Raises:
        ValueError: planted clips of a benchmark and no ``clips``, or more copies than plain recordings.
        ImportError: the speech synthesiser's package is missing.
    """
    if planted.get("benchmark") and not clips:
        raise ValueError("clips of a benchmark are planted, and none is given")
    if sum(planted.get(kind, 0) for kind in COPIES) > plain:
        raise ValueError(f"{plain} plain recordings are fewer than the copies of them")
    folder, made = Path(folder), list[dict[str, Any]]()
    (folder / RECORDINGS).mkdir(parents=True, exist_ok=True)
    with Espeak() as espeak:
        for number, one in enumerate(_all(RecordingMaker(espeak, seed), plain, planted, long, clips)):
            made.append(_write(folder, number, one, made))
    heard = [one for one in made if one["kind"] != "broken"]
    truth = {one["source_id"]: {"source_id": one["source_id"], "events": one["events"]} for one in heard}
    write_rows(folder / TRUTH, truth.values())
    write_rows(folder / MADE, made)
    return made


def read_made(folder: str | Path) -> list[dict[str, Any]]:
    """What was written to a folder.

    Raises:
        ValueError: nothing was.
    """
    try:
        return [json.loads(line) for line in (Path(folder) / MADE).read_text("utf-8").splitlines()]
    except OSError:
        raise ValueError(f"{folder}: no recordings were made there") from None


def _all(
    maker: RecordingMaker, plain: int, planted: Mapping[str, int], long: int, clips: Sequence[str | Path]
) -> Iterator[_Made]:
    talks, names = list[tuple[int, _Made]](), list(CHANNELS)
    for number in range(plain):
        channel = names[number % len(names)]
        one = maker.plain("Kitchen Table" if number < long else channel, LONG if number < long else 3 + number * 5 % 6)
        one.suffix = SUFFIXES[number % len(SUFFIXES)]
        if number >= long and one.genre == "talk" and one.suffix in (".flac", ".wav"):
            talks.append((number, one))
        yield one
    copied = 0
    for kind, count in planted.items():
        for place in range(count):
            some = (
                [one for one in talks if one[1].language != "en" and len(one[1].events) > 30]
                if kind == "retold"
                else talks
            )
            number, of = some[copied % len(some)] if kind in COPIES else (0, talks[0][1])
            clip = load_audio(clips[place % len(clips)]).numpy() if kind == "benchmark" else None
            made = maker.planted(kind, of, clip, place)
            if kind in COPIES:
                copied, made.of = copied + 1, str(number)
            yield made


def _write(folder: Path, number: int, one: _Made, before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    of = before[int(one.of)]["url"] if one.of else ""
    titles = TITLES.get(one.language or "en", TITLES["en"])
    title, name = f"{titles[number % len(titles)]} {number + 1}", f"{one.channel.split()[0].lower()}-{number:03d}"
    url = f"{name}{Path(of).suffix if one.kind == 'bytes' else one.suffix}"
    path = folder / RECORDINGS / url
    path.write_bytes(
        (folder / RECORDINGS / of).read_bytes() if one.kind == "bytes" else one.raw or _bytes(one.pcm, one.suffix)
    )
    described = "" if not one.said else one.said[0]
    side = {
        "id": name, "title": title, "channel": one.channel, "license": one.licence, "genre": one.genre,
        "description": described, "webpage_url": f"https://talks.example/{name}", "extractor": "example",
        "duration": len(one.pcm) / SAMPLE_RATE,
    }  # fmt: skip
    write_json(path.with_suffix(".info.json"), side)
    seconds = round(len(one.pcm) / SAMPLE_RATE, 3)
    told = {"url": url, "kind": one.kind, "of": of, "language": one.language, "genre": one.genre, "seconds": seconds}
    return {**told, "licence": one.licence, "source_id": digest_of(path), "events": one.events}


def _bytes(pcm: np.ndarray, suffix: str) -> bytes:
    """The file of samples [n] float32; the same samples have the same bytes but in Vorbis, whose files are numbered."""
    whole = (pcm * 32_767).round().clip(-32_768, 32_767).astype(np.int16)
    if suffix in (".flac", ".wav"):
        return (flac if suffix == ".flac" else wav)(whole)
    if suffix == ".ogg":
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, whole, SAMPLE_RATE, format="OGG", subtype="VORBIS")
        return file.getvalue()
    return _lossy(whole, *{".mp3": ("mp3", "libmp3lame", 64_000), ".opus": ("ogg", "libopus", 48_000)}[suffix])


def _lossy(pcm: np.ndarray, container: str, codec: str, bit_rate: int) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container, options={"fflags": "+bitexact"}) as out:
        stream = out.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(stream.codec_context.format, "mono", SAMPLE_RATE, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()
