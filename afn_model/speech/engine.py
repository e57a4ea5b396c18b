"""Speech from text as it comes: many streams, of each step one audio frame for every stream that can go on."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from afn_model.checks import number, whole
from afn_model.infer.pages import PAGE, PagePool
from afn_model.network.decode_step import ROWS, CompiledRows
from afn_model.network.kv_cache import PagedChunks, PagedKV, PagedRows
from afn_model.speech.codec_stream import CodecDecoderStream
from afn_model.speech.mixture import code_sums
from afn_model.speech.speaker import SpeakerPrompt
from afn_model.speech.talker import PAD
from afn_model.speech.voice import AFVoice


class EngineFull(RuntimeError):
    """As many streams are open as the engine was made for."""


class SpokenPiece:
    """A stretch of text that is said in one context, which begins with the speaker prompt."""

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.length = 0  # positions in the pages
        self.frames = 0
        self.tokens = 0
        self.over = False  # it gets no more text
        self.before: Tensor | None = None  # [D], the sum of the newest frame's codes


class SpokenStream:
    """One text that is said, from ``SpeechEngine.open``.

    ``done`` tells that no more sound comes, and ``reason`` why: "end" where the talker ended by itself, "length" where
    it did not within the engine's ``longest`` frames, "closed" after ``close``. ``frames`` counts the audio frames
    said, ``cuts`` the pieces that reached ``longest``.
    """

    def __init__(self, engine: SpeechEngine, prompt: Tensor, seed: int):
        self.done, self.reason, self.frames, self.cuts = False, "", 0, 0
        self._engine, self._prompt = engine, prompt
        self._generator = torch.Generator().manual_seed(seed)
        self._queue: deque[int] = deque()
        self._ended = False
        self._piece: SpokenPiece | None = None
        self._decoder = CodecDecoderStream(engine.voice.codec)

    @property
    def waiting(self) -> bool:
        """For text: it is not done, and the next step makes nothing of it."""
        return not (self.done or self._queue or self._ended or (self._piece is not None and self._piece.over))

    def say(self, ids: Sequence[int]) -> None:
        """More text, any number of tokens; ValueError for one that the talker does not have, and after the end."""
        if self._ended or self.done:
            raise ValueError(f"the stream takes no more text: it {'has ended' if self._ended else 'is done'}")
        most = self._engine.talker.config.text.vocab_size - 1
        self._queue.extend([whole(token, "a token's id", 0, most) for token in ids])

    def end(self) -> None:
        """No more text comes."""
        self._ended = True

    def close(self) -> None:
        """Nothing more is said, from now on; what the stream held is free at once."""
        if not self.done:
            self._engine._forget(self, "closed")


class SpeechEngine:
    """Says many texts at once; one step makes one audio frame for every stream that can go on.

    A stream without a token left that has not ended waits. Text of any length is said in bounded memory: it is cut into
    pieces, each of which is said in a context of its own behind the speaker prompt. A piece ends behind a token of
    ``breaks`` in its second half, or where it is full. What a stream draws is a function of its seed, so that it says
    the same alone and beside others.

    Args:
        voice: with a talker.
        streams: open at a time.
        longest, piece: frames and tokens of a piece at most; default the talker's. Frames bound a stream's pages.
        breaks: tokens behind which speech may pause, such as full stops.
        temperature, noise: of sampling; default the talker's.
        seed: of streams that are opened without one.

    Raises:
        ValueError: a voice without a talker, or a number out of range.
    """

    def __init__(
        self,
        voice: AFVoice,
        *,
        streams: int = 16,
        longest: int | None = None,
        piece: int | None = None,
        breaks: Collection[int] = (),
        temperature: float | None = None,
        noise: float | None = None,
        seed: int = 0,
    ):
        if voice.talker is None:
            raise ValueError("the voice has no talker: train one, or open a folder that has it")
        self.voice, self.talker, self.seed = voice, voice.talker, whole(seed, "seed", 0, 2**63 - 1)
        config = self.talker.config
        self.streams = whole(streams, "streams", 1)
        self.longest = longest = whole(config.longest if longest is None else longest, "longest", 2)
        self.piece = whole(min(config.piece, longest - 1) if piece is None else piece, "piece", 1, longest - 1)
        self.breaks = frozenset(breaks)
        self.temperature = number(config.temperature if temperature is None else temperature, "temperature")
        self.noise = number(config.noise if noise is None else noise, "noise")
        if min(self.temperature, self.noise) < 0:
            raise ValueError(f"temperature {self.temperature} and noise {self.noise} must be 0 or more")
        most = config.prompt + longest * self.talker.positions
        if most > config.text.max_positions:
            raise ValueError(
                f"longest {longest}: {most} positions with the prompt, and the talker has {config.text.max_positions}"
            )
        text = config.text
        self.pool = PagePool(streams * -(-most // PAGE))
        shape = (text.layers, 2, self.pool.pages, PAGE, text.kv_heads, text.head_dim)
        weight = self.talker.frame_proj.weight
        self.kv = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self._compiled = CompiledRows(self.talker.language_model)
        self._streams: list[SpokenStream] = []

    @property
    def codebooks(self) -> Tensor:
        return self.voice.codec.quantizer.codebooks

    def open(self, speaker: SpeakerPrompt | None = None, *, seed: int | None = None) -> SpokenStream:
        """A new stream.

        Args:
            speaker: default the voice's own; without one the talker chooses.
            seed: of what it draws.

        Raises:
            EngineFull: there are ``streams`` already.
            ValueError: a prompt of another codec.
        """
        if len(self._streams) >= self.streams:
            raise EngineFull(f"{self.streams} streams are speaking: close one, or wait")
        levels, size, _ = self.codebooks.shape
        codes = self.voice.default_voice if speaker is None else speaker.codes
        codes = torch.zeros(0, levels, dtype=torch.long) if codes is None else codes
        if codes.shape[1] != levels or (codes.numel() and not -1 <= int(codes.min()) <= int(codes.max()) < size):
            raise ValueError(f"a speaker prompt of another codec: this one has {levels} levels of {size} codes")
        codes = codes[: self.talker.config.prompt].to(self.kv.device)
        seed = self.seed if seed is None else whole(seed, "seed", 0, 2**63 - 1)
        stream = SpokenStream(self, code_sums(codes, self.codebooks), seed)
        self._streams.append(stream)
        return stream

    @torch.inference_mode()
    def step(self) -> list[tuple[SpokenStream, Tensor]]:
        """The next frame of every stream that can go on.

        Returns:
            float32 samples [n] on the CPU, at the codec's rate, of each stream that sounded; the end of a stream has
            the samples that the codec still held.
        """
        tokens = {stream: token for stream in self._streams if (token := self._next_token(stream)) is not None}
        frames = self._frames(tokens) if tokens else {}
        sounded = []
        for stream in list(self._streams):
            sound = [self._decode(stream, frames[stream])] if stream in frames else []
            if stream._ended and stream._piece is None and not stream._queue:
                sound.append(stream._decoder.finish()[0].float().cpu())
                self._forget(stream, "length" if stream.cuts else "end")
            if any(len(part) for part in sound):
                sounded.append((stream, torch.cat(sound)))
        return sounded

    def _next_token(self, stream: SpokenStream) -> int | None:
        """The text of a stream's next step, ``PAD`` where it is over; None where there is no next step."""
        piece = stream._piece
        if piece is None:
            if not stream._queue:
                return None
            piece = stream._piece = SpokenPiece()
        piece.over = piece.over or (stream._ended and not stream._queue)
        if piece.over:
            return PAD
        if not stream._queue:
            return None
        token = stream._queue.popleft()
        piece.tokens += 1
        piece.over = piece.tokens == self.piece or (2 * piece.tokens >= self.piece and token in self.breaks)
        return token

    def _frames(self, tokens: dict[SpokenStream, int]) -> dict[SpokenStream, Tensor]:
        """The next frame [D] of each stream, and whether its piece ends with it."""
        streams, talker, device = list(tokens), self.talker, self.kv.device
        dtype = self.kv.dtype
        pieces = [piece for stream in streams if (piece := stream._piece) is not None]
        prompts = [(p, s._prompt) for s, p in zip(streams, pieces, strict=True) if not p.length and len(s._prompt)]
        self._run([(piece, talker.prompt_inputs(prompt.to(dtype))) for piece, prompt in prompts])
        nothing = self.codebooks.new_zeros(talker.latent)
        before = torch.stack([nothing if piece.before is None else piece.before for piece in pieces]).to(dtype)
        first = torch.tensor([piece.before is None for piece in pieces], device=device)
        text = torch.tensor([tokens[stream] for stream in streams], device=device)
        hidden = self._run(list(zip(pieces, talker.step_inputs(text, before, first), strict=True)))
        draws = [self._draw(stream) for stream in streams]
        uniform, normal = (torch.stack(drawn).to(device) for drawn in zip(*draws, strict=True))
        # On a CPU the bits of a product depend on how many rows it has: each stream has its own.
        rows = zip(*(x.split(1 if device.type == "cpu" else len(x)) for x in (hidden, uniform, normal)), strict=True)
        options = {"temperature": self.temperature, "noise": self.noise}
        found = [
            (talker.head.fill(h, self.codebooks, u, n, **options)[1], talker.end_head(h)[:, 0]) for h, u, n in rows
        ]
        sums, ends = (torch.cat(parts) for parts in zip(*found, strict=True))
        for stream, piece, frame, ended in zip(streams, pieces, sums, (ends > 0).tolist(), strict=True):
            piece.before, piece.frames, stream.frames = frame, piece.frames + 1, stream.frames + 1
            ended = ended and tokens[stream] == PAD
            if ended or piece.frames == self.longest:
                stream.cuts += not ended
                self.pool.release(piece.pages)
                stream._piece = None
        return dict(zip(streams, sums, strict=True))

    def _draw(self, stream: SpokenStream) -> tuple[Tensor, Tensor]:
        count = len(self.talker.head.known)
        uniform = torch.rand(count, generator=stream._generator)
        return uniform, torch.randn(count, self.talker.latent, generator=stream._generator)

    def _decode(self, stream: SpokenStream, frame: Tensor) -> Tensor:
        return stream._decoder.push(frame[None, None])[0].float().cpu()

    def _run(self, work: Sequence[tuple[SpokenPiece, Tensor]]) -> Tensor:
        """Runs new inputs [n, width] of pieces through the decoder; [pieces, width], the last hidden state of each."""
        found: dict[SpokenPiece, Tensor] = {}
        for group in self._groups(work):
            hidden = self._pass(group)
            ends = torch.tensor([len(x) for _, x in group]).cumsum(0) - 1
            found.update(zip((piece for piece, _ in group), hidden[ends.to(hidden.device)], strict=True))
        return torch.stack(list(found.values())) if found else self.kv.new_zeros(0)

    def _groups(self, work: Sequence[tuple[SpokenPiece, Tensor]]) -> Iterator[list[tuple[SpokenPiece, Tensor]]]:
        """What goes through the decoder together: all; on a CPU few enough rows for the compiled step, whose rows do
        not depend on each other."""
        if self.kv.device.type != "cpu":
            if work:
                yield list(work)
            return
        group, rows = list[tuple[SpokenPiece, Tensor]](), 0
        for piece, x in work:
            for part in x.split(ROWS):
                if rows + len(part) > ROWS or (group and group[-1][0] is piece):
                    yield group
                    group, rows = [], 0
                group.append((piece, part))
                rows += len(part)
        if group:
            yield group

    def _pass(self, group: Sequence[tuple[SpokenPiece, Tensor]]) -> Tensor:
        """[T, width] hidden states of new positions, after their keys and values are in the pages."""
        device = self.kv.device
        positions, slots, counts = list[int](), list[int](), list[int]()
        for piece, x in group:
            new = range(piece.length, piece.length + len(x))
            piece.length += len(x)
            piece.pages += self.pool.allocate(-(-piece.length // PAGE) - len(piece.pages))
            positions += new
            slots += [piece.pages[at // PAGE] * PAGE + at % PAGE for at in new]
            counts.append(len(x))
        widest = max(len(piece.pages) for piece, _ in group)
        table = torch.tensor([piece.pages + [0] * (widest - len(piece.pages)) for piece, _ in group])
        table, total = table.int().to(device), len(positions)
        lengths = torch.tensor([piece.length for piece, _ in group], dtype=torch.int32, device=device)
        places = torch.tensor(slots, device=device)
        if max(counts) == 1:
            kv = PagedKV(self.kv, places, row_tokens=total, rows=PagedRows(table, lengths))
        else:
            cu_seqlens = torch.tensor([0, *counts]).cumsum(0).int().to(device)
            kv = PagedKV(self.kv, places, chunk_tokens=total, chunks=PagedChunks(cu_seqlens, table, lengths))
        x = torch.cat([x for _, x in group])
        at = torch.tensor(positions, dtype=torch.float32, device=device)
        found = self._compiled(x, at, kv)
        return self.talker.cached(x, at, kv) if found is None else found

    def _forget(self, stream: SpokenStream, reason: str) -> None:
        if stream._piece is not None:
            self.pool.release(stream._piece.pages)
        stream.done, stream.reason, stream._piece = True, reason, None
        stream._queue.clear()
        self._streams.remove(stream)
