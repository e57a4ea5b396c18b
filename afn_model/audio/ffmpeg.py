"""FFmpeg's decoders, through PyAV: blocks of mono samples, and what went wrong on the way.

Only what is in the file itself is read: no playlists, no other files, no network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from afn_model.audio.container import Structure, inspect, is_trailer, mp3_frame_bytes
from afn_model.ranges import RemoteBytes
from afn_model.storage import StorageError

if TYPE_CHECKING:
    import av

# Containers of audio. Not among them is whatever opens other files (hls, concat, dash, sdp, image sequences) or takes
# any bytes for samples.
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,iff,ircam,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpegts,"
    "nistsphere,ogg,rm,sds,tta,voc,w64,wav,wv"
)
BLOCK = 1 << 16  # samples of each channel
PREROLL = 1.0  # seconds decoded before the part that is wanted: what decoders carry over
SLACK = 0.1  # seconds that a header, an encoder's delay or a last frame may be off by
GAPS = {
    "matroska,webm",
    "mov,mp4,m4a,3gp,3g2,mj2",
    "mpegts",
    "asf",
    "avi",
    "flv",
    "rm",
}  # may leave silence out
_COUNTED = ("pcm_", "flac", "alac", "ape", "tta", "wavpack")  # codecs whose containers count samples
_UNCOUNTED = {"wav", "voc"}  # afn_model.audio.container counts; FFmpeg takes headers for samples
_MISREAD = {"g726", "g726le", "amrnb"}  # G.721, G.723 and NMS ADPCM are taken for these
_HOLE = 1 << 20  # bytes of zeros in a row that no compressed stream has
_DRIFTING = ("ac3", "eac3")  # time stamps that add up packets' lengths, each rounded down to 1/90,000 s
_JITTER = 0.002  # seconds; containers that count milliseconds round
_QUIET = 0.01  # below this, a mix may be what is left of channels that cancel each other
_SOUGHT = ("wav", "flac")  # formats in which FFmpeg finds a moment exactly, and that are long in bytes
_FAR = 10.0  # seconds of a file in storage that are rather read than passed over
_FULL_SCALE = {torch.uint8: 2.0**7, torch.int16: 2.0**15, torch.int32: 2.0**31, torch.int64: 2.0**63}


class PcmBlock(NamedTuple):
    """Samples that follow one another.

    Args:
        rate: Hz.
        pcm: [n] float32, the mean of the channels.
        loudest: of any channel, where the mix is quiet and there are several channels; 0 elsewhere.
    """

    rate: int
    pcm: Tensor
    loudest: float = 0.0


def mix_down(planes: Tensor, rate: int) -> PcmBlock:
    """The mean of the channels.

    Args:
        planes: [channels, n], floating point, or integers that are divided by their full scale.
        rate: Hz.
    """
    channels, scale = len(planes), 1.0 / _FULL_SCALE.get(planes.dtype, 1.0)
    values = planes.float() - 128.0 if planes.dtype == torch.uint8 else planes.float()
    if channels == 1:
        return PcmBlock(rate, values[0] * scale if scale != 1.0 else values[0])
    pcm, loudest = torch.mv(values.T, torch.full((channels,), scale / channels)), 0.0
    if pcm.numel() and float(pcm.abs().max()) < _QUIET:
        loudest = float(values.abs().max()) * scale
    return PcmBlock(rate, pcm, loudest)


class _Bytes:
    """Part of a file as something to read from, so that FFmpeg opens nothing by itself.

    ``problem`` is why storage did not give what was asked for: to FFmpeg, which would ask on, the file ends there.
    """

    problem: StorageError | None = None

    def __init__(self, data, structure: Structure, part: tuple[int, int]):
        self._data, (self._begin, self._end) = data, part
        self._patch, self._dense = structure.patch, structure.dense
        self._at, self._zeros = self._begin, 0

    def read(self, size: int) -> bytes:
        at, stop = self._at, min(self._at + size, self._end)
        if self.problem is not None:
            return b""
        try:
            chunk = bytes(self._data[at:stop])
        except StorageError as error:
            self.problem = error
            return b""
        if self._patch is not None and at <= self._patch[0] < stop:
            first = self._patch[0] - at
            chunk = chunk[:first] + self._patch[1] + chunk[first + len(self._patch[1]) :]
        if self._dense:
            self._zeros = 0 if chunk.strip(b"\0") else self._zeros + len(chunk)
            if self._zeros > _HOLE:
                return b""
        self._at = stop
        return chunk

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at, self._zeros = max(self._begin, (self._begin, self._at, self._end)[whence] + offset), 0
        return self.tell()

    def tell(self) -> int:
        return self._at - self._begin


class AudioFile:
    """A file, or a part of one, that FFmpeg has opened.

    Args:
        data: bytes-like, the whole file.
        structure: what is known of it; looked at if None.
        number: of the part, in ``structure.parts``.

    Attributes:
        rate: Hz, as the file says; blocks have what the decoder gives.
        channels: as the file says.
        promised: seconds by the file's header, None where it does not say or FFmpeg only guesses.
        counts: whether ``promised`` is a number of samples.
        begin: sample that decoding began at.
        damaged: packets that could not be decoded so far.
        torn: whether the last packet was incomplete.
        slack: seconds that header, time stamps and samples may differ by: an encoder's delay, a frame not counted.
        stamped: seconds that the time stamps of the packets so far cover.
        span: the same without the encoder's delay.
        decoded: seconds up to the last sample so far.

    Raises:
        ValueError: not audio that FFmpeg reads, or no audio in it.
    """

    def __init__(self, data, structure: Structure | None = None, number: int = 0):
        self._data, self._number = data, number
        self._structure = inspect(data) if structure is None else structure
        self._open()
        context = self._stream.codec_context
        self.format, self.codec, self.rate = self._container.format.name, context.name, context.sample_rate
        self.channels = context.layout.nb_channels
        if self.format in ("au", "wav") and self.codec in _MISREAD:
            self.close()
            raise ValueError(f"{self.codec} in {self.format} is another codec")
        self.promised = self._promised(self._stream)
        self.slack = SLACK + (2304 / self.rate if self.rate and self.codec.startswith("mp3") else 0.0)
        self.damaged, self.torn, self.begin = 0, False, 0
        self.decoded, self._tick, self._origin, self._first, self._end = 0.0, 0.0, None, None, None

    def _open(self) -> None:
        import av

        self._error = av.FFmpegError
        self._file = _Bytes(self._data, self._structure, self._structure.parts[self._number])
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "none", **self._structure.options}
        try:
            self._container = av.open(self._file, "r", options=options, metadata_errors="replace", buffer_size=1 << 16)
        except (av.FFmpegError, ValueError, OSError) as error:
            self._check_storage()
            raise ValueError(getattr(error, "strerror", None) or str(error)) from None
        self._check_storage()
        streams = self._container.streams.audio
        if not streams or streams[0].codec_context is None:
            self.close()
            raise ValueError("there is no audio in it" if not streams else "no decoder for its audio")
        self._stream = streams[0]
        self._stream.codec_context.thread_count = 1
        if self._stream.codec_context.name == "flac":  # or a damaged frame is noise without a word
            self._stream.codec_context.options = {"err_detect": "crccheck+explode"}

    def _check_storage(self) -> None:
        if self._file.problem is not None:
            raise self._file.problem

    def _promised(self, stream: av.AudioStream) -> float | None:
        self.counts = self.format not in GAPS | _UNCOUNTED and self.codec.startswith(_COUNTED)
        if self.counts and stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if self.format in GAPS - {"mpegts"}:
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            return self._container.duration / 1e6 if self._container.duration else None
        return None  # nothing that counts, or what afn_model.audio.container reads

    @property
    def span(self) -> float:
        return 0.0 if self._end is None or self._origin is None else (self._end - self._origin) * self._tick

    @property
    def stamped(self) -> float:
        return 0.0 if self._end is None or self._first is None else (self._end - self._first) * self._tick

    def close(self) -> None:
        self._container.close()

    def seconds(self) -> float:
        """How long it is: by its header, or by the time stamps of all of its packets."""
        if self.promised:
            return self.promised
        trimmed = 0
        for packet in self._packets():
            if self.codec.startswith("mp3") and packet.has_sidedata("skip_samples"):
                trimmed = int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[4:8], "little")  # behind the end
        return max(0.0, self.span - (trimmed / self.rate if self.rate else 0.0))

    def blocks(self, start: float = 0.0) -> Iterator[PcmBlock]:
        """Decodes to the end, from at most a second before ``start`` (in seconds) on where time stamps allow that."""
        frames = self._frames(start)
        try:
            frame = next(frames, None)
            self.begin = self._position(frame) if frame is not None and start > PREROLL else 0
        except TimeLostError:
            self.close()
            self._open()
            frames = self._frames(0.0)
            frame = next(frames, None)
        if frame is not None:
            self.decoded = self.begin / frame.sample_rate
            try:
                yield from self._in_blocks(chain([frame], frames))
            except self._error as error:  # of a layout of channels that cannot be mixed
                raise ValueError(f"cannot be decoded ({error})") from None
        elif start > PREROLL and not self.damaged:
            self.decoded = self.span  # the file ends before the part that is wanted

    def _in_blocks(self, frames: Iterable[av.AudioFrame]) -> Iterator[PcmBlock]:
        import av

        fifo, channels, packer, last = av.AudioFifo(), 0, None, 0.0
        for frame in frames:
            frame.pts, last = None, frame.samples / frame.sample_rate
            if frame.layout.nb_channels != channels:  # which a queue does not check
                yield from self._drain(fifo, 0)
                fifo, channels = av.AudioFifo(), frame.layout.nb_channels
                packer = _packer(frame)
            try:
                for piece in [frame] if packer is None else packer.resample(frame):
                    fifo.write(piece)
            except ValueError:  # another rate or format from here on
                yield from self._drain(fifo, 0)
                fifo, packer = av.AudioFifo(), _packer(frame)
                for piece in [frame] if packer is None else packer.resample(frame):
                    fifo.write(piece)
            if fifo.samples >= BLOCK:
                yield from self._drain(fifo, BLOCK)
        end = self.promised if self.format.startswith("mov") else self.span if self.format == "ogg" else None
        padding = 0.0 if end is None or not fifo.samples else self.decoded + fifo.samples / self.rate - end
        yield from self._drain(fifo, fifo.samples - round(padding * self.rate) if 0 < padding < max(SLACK, last) else 0)

    def _drain(self, fifo: av.AudioFifo, samples: int) -> Iterator[PcmBlock]:
        frame = fifo.read(samples) if fifo.samples else None
        if frame is not None:
            data = torch.from_numpy(frame.to_ndarray())
            planes = data if frame.format.is_planar else data.view(-1, frame.layout.nb_channels).T
            self.decoded += planes.shape[1] / frame.sample_rate
            yield mix_down(planes, frame.sample_rate)

    def _position(self, frame: av.AudioFrame) -> int:
        if frame.pts is None or frame.time_base is None:
            raise TimeLostError
        return round(float((frame.pts - (self._origin or 0)) * frame.time_base * frame.sample_rate))

    def _frames(self, start: float) -> Iterator[av.AudioFrame]:
        held: list[av.Packet] | None = [] if start > PREROLL else None
        coarse = float(self._stream.time_base or 1) * self.rate > 1  # matroska: milliseconds
        if held is not None and (coarse or self.format in _DRIFTING):
            raise TimeLostError
        for packet in self._packets(0.0 if held is None else start):
            if held is None:
                yield from self._decoded(packet)
                continue
            if self._jumped:
                raise TimeLostError
            if packet.size and self.span < start - PREROLL:
                continue
            held.append(packet)
            if packet.size and self.span < start:
                continue
            for number, one in enumerate(held):
                yield from self._decoded(one, early=number < len(held) // 2)  # no decoder begins without its past
            held = None

    def _decoded(self, packet: av.Packet, early: bool = False) -> list[av.AudioFrame]:
        try:
            return packet.decode()
        except self._error:
            if packet.size and not early and not is_trailer(bytes(packet)):
                self.damaged += 1
            return []

    def _packets(self, start: float = 0.0) -> Iterator[av.Packet]:
        """The stream's packets and, last, an empty one; of a file in storage from shortly before ``start`` on."""
        stream, last, end = self._stream, None, None
        self._tick = float(stream.time_base or 0)
        jitter = _JITTER / self._tick if self._tick else 0
        self._origin, self._first, self._end, self._jumped = stream.start_time, None, None, False
        if isinstance(self._data, RemoteBytes) and self.format in _SOUGHT and start > _FAR and not self._origin:
            try:
                self._container.seek(round((start - 2 * PREROLL) / self._tick), stream=stream)
            except self._error:
                self._check_storage()
                raise TimeLostError from None
            self._origin = self._first = 0
            self._end = stream.duration  # should nothing follow
        try:
            for packet in self._container.demux(stream):
                begin, length = packet.pts, packet.duration or 0
                if begin is not None and self.format in _DRIFTING:
                    begin, length = end or 0, round(length * self._tick * self.rate) / (self._tick * self.rate)
                if begin is not None:
                    if end is None:
                        self._first = begin if self._first is None else self._first
                        self._origin = begin if self._origin is None else self._origin
                    elif abs(begin - end) > jitter:
                        self._jumped = True
                    # The last of a vorbis stream may end before it begins: a negative number without its sign.
                    end = self._end = begin + (length if length < 1 << 31 else length - (1 << 32))
                if packet.size:
                    last = packet
                yield packet
        except self._error:  # a damaged index or page ends the file
            self.damaged += 1
        self._check_storage()
        if last is not None and self.codec.startswith("mp3"):
            self.torn = last.size < (mp3_frame_bytes(bytes(last)[:4]) or 0)
        elif last is not None and last.pos is not None and self.format == "aac":
            self.torn = last.pos + last.size < self._container.size


def _packer(frame: av.AudioFrame) -> av.AudioResampler | None:
    """What interleaves the channels of eight planes and more: PyAV takes what lies behind the eighth for others."""
    import av

    if frame.layout.nb_channels < 8 or not frame.format.is_planar:
        return None
    return av.AudioResampler("flt", frame.layout, frame.sample_rate)


class TimeLostError(Exception):
    """The time stamps do not say where in the recording a packet belongs."""
