"""The tensors of the engine: keys and values in pages, and the forward passes of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

import afn_kernels as ak
from afn_model.infer.grammar import GrammarState, masks
from afn_model.infer.graphs import RowGraphs, RowInputs
from afn_model.infer.page_tables import PageTables
from afn_model.infer.pages import PAGE
from afn_model.infer.sampler import Drawn, Sampler
from afn_model.network.decode_step import CompiledRows
from afn_model.network.head import sampling_logits
from afn_model.network.kv_cache import PagedChunks, PagedKV, PagedRows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Sequence as Run

    from afn_model.infer.audio_cache import AudioCache
    from afn_model.infer.sequence import EngineStep, PromptChunk, Sequence
    from afn_model.network.network import Network

TILE = 8  # rows of a forward pass in the deterministic mode
SPLIT = 1024  # keys that a row reads together there


@dataclass
class LaunchedStep:
    """What a step draws.

    Args:
        sequences: that draw a token each.
        drawn: these tokens (-1 where scores were NaN or infinite), their log-probabilities, and where a slot asks for
            them ids and log-probabilities of the likeliest tokens; on the host.
        copied: when they are there; None where they are.
        known: (sequence, token, log-probability) of what is known already.
    """

    sequences: list[Sequence] = field(default_factory=list)
    drawn: tuple[Tensor, ...] = ()
    copied: torch.cuda.Event | None = None
    known: list[tuple[Sequence, int, float]] = field(default_factory=list)

    def fetch(self, drawn: Drawn) -> None:
        """Begins to copy what was drawn to the host: to wait for that is not to wait for the step after it."""
        found = torch.where(drawn.finite, drawn.token, -1), drawn.logprob, *(drawn.top or ())
        if drawn.token.is_cuda:
            pinned = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in found]
            found = tuple(there.copy_(part, non_blocking=True) for there, part in zip(pinned, found, strict=True))
            self.copied = torch.cuda.Event()
            self.copied.record(torch.cuda.current_stream(drawn.token.device))
        self.drawn = found

    def results(self) -> list[tuple[Sequence, int, float]]:
        """(sequence, token, log-probability) of all, waiting for this step; -1 where scores were NaN or infinite."""
        if not self.drawn:
            return self.known
        if self.copied is not None:
            self.copied.synchronize()
        tokens, logprobs = (part.tolist() for part in self.drawn[:2])
        return [*self.known, *zip(self.sequences, tokens, logprobs, strict=True)]

    def top(self) -> dict[Sequence, list[tuple[int, float]]]:
        """(id, log-probability) of the likeliest tokens for each sequence that draws, after ``results``."""
        if len(self.drawn) < 4:
            return {}
        ids, logprobs = (part.tolist() for part in self.drawn[2:])
        pairs = [list(zip(*row, strict=True)) for row in zip(ids, logprobs, strict=True)]
        return dict(zip(self.sequences, pairs, strict=True))


class ModelRunner:
    """Executes steps.

    Args:
        model: the model.
        audio: the windows' features.
        pages: of keys and values.
        slots: sequences that run at the same time, at most.
        deterministic: every chunk is a forward pass of its own of ``chunk`` tokens, and rows come in tiles of 8, both
            padded: what is computed together then has no part in any bit.
        chunk: tokens of a padded chunk.
        graphs: replay CUDA graphs where a step is rows alone.
        kv_dtype: of keys and values; that of the model if None, or float8_e4m3fn.
    """

    def __init__(
        self,
        model: Network,
        audio: AudioCache,
        *,
        pages: int,
        slots: int,
        deterministic: bool = False,
        chunk: int = 2048,
        graphs: bool = False,
        kv_dtype: torch.dtype | None = None,
    ):
        config = model.config.text
        shape = (config.layers, 2, pages, PAGE, config.kv_heads, config.head_dim)
        self.model, self.audio = model, audio
        self.kv = torch.empty(shape, dtype=kv_dtype or model.dtype, device=model.device)
        self.sampler = Sampler(slots, config.vocab_size, model.device)
        self.deterministic, self.chunk = deterministic, chunk
        self.share = model.device.type == "cuda" and not deterministic  # read a prompt once for all answers to it
        # Where no part of a prompt was there before, a GPU's fastest attention does not read pages; a CPU's does.
        self.fresh = model.device.type == "cuda" and not deterministic
        self.last = torch.zeros(slots, dtype=torch.int64, device=model.device)  # drawn in each slot
        self.compiled = CompiledRows(model.language_model)
        width = min(-(-config.max_positions // PAGE), pages)
        self.tables = PageTables(slots, width)
        self.graphs: RowGraphs | None = None
        if graphs:
            self.graphs = RowGraphs(partial(row_logits, model, self.kv), width, model.device)
        self._empty = torch.empty(0, config.vocab_size, device=model.device)

    def launch(
        self,
        step: EngineStep,
        forced: Mapping[Sequence, int],
        grammars: Mapping[Sequence, GrammarState],
    ) -> LaunchedStep:
        """Begins a step. Nothing waits for the device, unless drafts are verified.

        Args:
            step: what to compute.
            forced: tokens that must be drawn.
            grammars: what says which tokens may be drawn.
        """
        for page, payload in step.restored:
            self.kv[:, :, page].copy_(payload, non_blocking=True)
        if step.copies:
            source, target = (self._numbers(list(pages)) for pages in zip(*step.copies, strict=True))
            kv = self.kv.view(torch.uint8)  # which devices copy by index, whatever they do with FP8
            kv[:, :, target] = kv[:, :, source]
        if step.windows:
            self.audio.encode(step.windows)
        rows = list(zip(step.rows, step.places, strict=True))
        scores = self._scores(step, rows)
        launched, at = LaunchedStep(), 0
        for chunk in step.verified:
            launched.known += self._drawn_after(chunk, scores[at : at + chunk.stop - chunk.start])
            at += chunk.stop - chunk.start
        drawing = [index for index, draws in enumerate(step.draws) if draws]
        if drawing:
            if at or len(drawing) < len(scores):
                scores = scores[self._numbers([at + index for index in drawing])]
            launched.sequences = [step.rows[index] for index in drawing]
            slots = self._numbers([sequence.slot for sequence in launched.sequences])
            steps = self._numbers([step.places[index] + 1 - len(step.rows[index].prompt.ids) for index in drawing])
            states = {row: grammars[one] for row, one in enumerate(launched.sequences) if one in grammars}
            must = self._numbers([forced.get(one, -1) for one in launched.sequences]) if forced else None
            allowed = masks(states, self.kv.device)
            drawn = self.sampler.next(scores, slots, steps, allowed=allowed, forced=must)
            self.last.index_copy_(0, slots, drawn.token)
            launched.fetch(drawn)
        return launched

    def _scores(self, step: EngineStep, rows: list[tuple[Sequence, int]]) -> Tensor:
        """Logits after the tokens of drafts, then after those of rows, then some that are nobody's; float32."""
        if self.deterministic:
            for chunk in step.chunks:
                self._forward([chunk], [], padded=self.chunk)
            tiles = [self._forward([], rows[at : at + TILE], padded=TILE) for at in range(0, len(rows), TILE)]
            return torch.cat([sampling_logits(self.model.lm_head, tile) for tile in tiles]) if tiles else self._empty
        alone = not step.chunks and not step.verified
        together = self.share and any(one.leader is not None for one, _ in rows)
        if self.graphs is not None and rows and alone and not together:
            return self.graphs(self._inputs(rows))
        silent = sum(chunk.stop - chunk.start for chunk in step.chunks)
        hidden = self._forward([*step.chunks, *step.verified], rows, padded=0)[silent:]
        return sampling_logits(self.model.lm_head, hidden) if len(hidden) else self._empty

    def _inputs(self, rows: list[tuple[Sequence, int]]) -> RowInputs:
        positions = [self._positions(sequence, place, place + 1)[0] for sequence, place in rows]
        slots = [sequence.places(place, place + 1)[0] for sequence, place in rows]
        paged = self._rows(rows)
        ids = self._ids([sequence.token(place) for sequence, place in rows], rows)
        return RowInputs(ids, self._numbers(positions, torch.float32), self._numbers(slots), paged.table, paged.lengths)

    def _ids(self, ids: list[int], rows: Run[tuple[Sequence, int]]) -> Tensor:
        """[T] int64; tokens of rows that the host does not know yet (-1) are the last ones drawn in their slots."""
        found = self._numbers(ids)
        if -1 not in ids[len(ids) - len(rows) :]:
            return found
        before = len(ids) - len(rows)
        slots = self._numbers([0] * before + [sequence.slot for sequence, _ in rows])
        return torch.where(found < 0, self.last[slots], found)

    def _drawn_after(self, chunk: PromptChunk, scores: Tensor) -> list[tuple[Sequence, int, float]]:
        """What is drawn after each token of a draft, up to the first that the draft does not go on with."""
        sequence, found = chunk.sequence, []
        slots, first = self._numbers([sequence.slot]), chunk.start + 1 - len(sequence.prompt.ids)
        for index in range(chunk.stop - chunk.start):
            drawn = self.sampler.next(scores[index : index + 1], slots, self._numbers([first + index]))
            token = int(torch.where(drawn.finite, drawn.token, -1))
            found.append((sequence, token, float(drawn.logprob)))
            if index == len(sequence.draft) or token != sequence.draft[index]:
                break
        return found

    def _forward(self, chunks: Run[PromptChunk], rows: Run[tuple[Sequence, int]], padded: int) -> Tensor:
        """Hidden states [tokens, width] of chunks, then of rows, then of what they are padded with to ``padded``."""
        ids: list[int] = []
        positions: list[float] = []
        slots: list[int] = []
        for chunk in chunks:
            ids += chunk.sequence.known(chunk.start, chunk.stop)
            positions += self._positions(chunk.sequence, chunk.start, chunk.stop)
            slots += chunk.sequence.places(chunk.start, chunk.stop)
        tokens = len(ids)
        for sequence, place in rows:
            ids.append(sequence.token(place))
            positions += self._positions(sequence, place, place + 1)
            slots += sequence.places(place, place + 1)
        padding = max(0, padded - len(ids))
        given = self._ids(ids, rows)
        positions += [0.0] * padding
        slots += [-1] * padding
        kv = PagedKV(
            self.kv,
            self._numbers(slots),
            tokens,
            len(rows),
            self._chunks(chunks) if chunks else None,
            self._rows(rows) if rows else None,
            SPLIT if self.deterministic else None,
        )
        given = F.pad(given, (0, padding)) if padding else given
        x_TD = self._embed(given, chunks, rows)
        places = self._numbers(positions, torch.float32)
        found = self.compiled(x_TD, places, kv)
        return self.model.language_model(x_TD, places, kv=kv) if found is None else found

    def _embed(self, ids: Tensor, chunks: Run[PromptChunk], rows: Run[tuple[Sequence, int]]) -> Tensor:
        """Token embeddings, with those of the audio windows in their places."""
        parts = [(chunk.sequence, chunk.start, chunk.stop) for chunk in chunks]
        parts += [(sequence, place, place + 1) for sequence, place in rows]
        audio, places, at = [], [], 0
        for sequence, start, stop in parts:
            for span in sequence.prompt.windows if start < len(sequence.prompt.ids) else ():
                first, last = max(span.start, start), min(span.stop, stop)
                if first < last:
                    found = self.audio.embeddings(span.digest, span.index)
                    audio.append(found[first - span.start : last - span.start])
                    places += range(at + first - start, at + last - start)
            at += stop - start
        x_TD = self.model.language_model.embed_tokens(ids)
        if not audio:
            return x_TD
        return ak.merge_embeddings(x_TD, torch.cat(audio).to(x_TD.dtype), self._numbers(places))

    def _positions(self, sequence: Sequence, start: int, stop: int) -> list[float]:
        """Rotary positions of tokens [start, stop)."""
        clock = sequence.prompt.clock
        if clock is None:
            return [float(place) for place in range(start, stop)]
        last, advance = len(clock) - 1, self.model.text_advance
        return [clock[at] if at <= last else clock[last] + advance * (at - last) for at in range(start, stop)]

    def _chunks(self, chunks: Run[PromptChunk]) -> PagedChunks:
        config = self.model.config.text
        bounds = [0]
        for chunk in chunks:
            bounds.append(bounds[-1] + chunk.stop - chunk.start)
        cu_seqlens, schedule = self._numbers(bounds, torch.int32), None
        whole = self.kv.dtype == self.model.dtype and not any(chunk.start for chunk in chunks)
        if whole and self.fresh:
            call = {"head_dim": config.head_dim, "dtype": self.model.dtype}
            longest = max(chunk.stop for chunk in chunks)
            schedule = ak.attention_schedule(cu_seqlens, total_q=bounds[-1], longest=longest, causal=True, **call)
        stops = [chunk.stop for chunk in chunks]
        table = self._table([chunk.sequence for chunk in chunks], stops)
        return PagedChunks(cu_seqlens, table, self._numbers(stops, torch.int32), schedule)

    def _rows(self, rows: Run[tuple[Sequence, int]]) -> PagedRows:
        sequences, lengths = [sequence for sequence, _ in rows], [place + 1 for _, place in rows]
        if self.share and len({id(sequence.prompt) for sequence in sequences}) < len(rows):
            return self._shared(sequences, lengths)
        return PagedRows(self._table(sequences, lengths), self._numbers(lengths, torch.int32))

    def _shared(self, sequences: list[Sequence], lengths: list[int]) -> PagedRows:
        """Answers to one prompt beside each other, in groups of the size of the largest: the first stands for those
        that the others lack."""
        groups: dict[int, list[int]] = {}
        for row, sequence in enumerate(sequences):
            groups.setdefault(id(sequence.prompt), []).append(row)
        size = max(map(len, groups.values()))
        order = [row for group in groups.values() for row in group + group[:1] * (size - len(group))]
        places = [0] * len(sequences)
        for index, group in enumerate(groups.values()):
            for member, row in enumerate(group):
                places[row] = index * size + member
        prefixes = [self._prefix([sequences[row] for row in group]) for group in groups.values()]
        table = self._table([sequences[row] for row in order], [lengths[row] for row in order])
        numbers = self._numbers([lengths[row] for row in order], torch.int32)
        return PagedRows(table, numbers, self._numbers(prefixes, torch.int32), self._numbers(places))

    @staticmethod
    def _prefix(group: list[Sequence]) -> int:
        """Tokens in pages that all of a group have."""
        first, most = group[0].pages, (len(group[0].prompt.ids) - 1) // PAGE
        for one in group[1:]:
            most = next((at for at in range(most) if one.pages[at] != first[at]), most)
        return most * PAGE

    def _table(self, sequences: list[Sequence], lengths: list[int]) -> Tensor:
        """[N, pages of the longest] int32."""
        return self._there(self.tables.of(sequences, lengths))

    def _numbers(self, numbers: list, dtype: torch.dtype = torch.int64) -> Tensor:
        return self._there(torch.tensor(numbers, dtype=dtype))

    def _there(self, found: Tensor) -> Tensor:
        """On the model's device, without waiting for it."""
        return found if self.kv.device.type == "cpu" else found.pin_memory().to(self.kv.device, non_blocking=True)


def row_logits(model: Network, kv: Tensor, rows: RowInputs) -> Tensor:
    """Logits after rows, whose keys and values are written into pages."""
    paged = PagedKV(kv, rows.slots, 0, len(rows.ids), None, PagedRows(rows.table, rows.lengths))
    x_TD = model.language_model.embed_tokens(rows.ids)
    return sampling_logits(model.lm_head, model.language_model(x_TD, rows.positions, kv=paged))
