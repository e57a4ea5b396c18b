"""The engine: requests come and go, and every step computes a part of each that runs.

engine = Engine(model)
(request,) = engine.add(processor.pack([prepared]), SamplingParams(max_new_tokens=256))
while not request.done:
    engine.step()
request.answers[0].tokens
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Run
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from afn_model.hashing import key as hashed
from afn_model.infer.audio_cache import AudioCache
from afn_model.infer.costs import Costs
from afn_model.infer.drafts import AnswerDraft
from afn_model.infer.finish import END_OF_THINKING, Finish, Reason, ends_inside
from afn_model.infer.grammar import Grammars
from afn_model.infer.offload import HostPages
from afn_model.infer.pages import PAGE, PagePool
from afn_model.infer.request import Growing, NotFinite, Request, seeded, set_clocks
from afn_model.infer.runner import LaunchedStep, ModelRunner
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.schedule import Scheduler
from afn_model.infer.sequence import EngineStep, PromptChunk, Sequence
from afn_model.infer.tokens import PromptTokens, prompts_of

if TYPE_CHECKING:
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch
    from afn_model.prompt.processor import AFNextProcessor

AUDIO_BYTES = 4 << 30  # features of audio windows that are kept: 2,200 windows of a released model, 18 hours


class Engine:
    """Answers requests with one model, many at a time.

    Threads may share it: one of them has it at a time, and callbacks come in the thread whose step it is.

    Args:
        model: the model. Its weights must not change while the engine holds keys and values (``clear``).
        processor: of the model; text, and with it stop strings, grammars and a cap on thinking, needs it.
        pages: of keys and values, 64 tokens each; None takes what is free on a GPU, and 46,080 tokens elsewhere.
        slots: answers that grow at the same time, at most.
        chunk: tokens of prompts computed in one step, at most.
        deterministic: an answer's bits depend on its request alone: not on what else runs, nor on what was computed
            before, nor on when it came. Costs speed.
        costs: predictions that bound a step while answers grow; None is ``Costs.of`` the model where there is a GPU.
        audio_bytes: of features of audio windows that are kept; None is 4 GiB, or a quarter of what is free on a GPU
            where that is less.
        offload: where pages go that others need, and come back from.
        ahead: whether a step begins before the tokens of the one before it are known; None is where there is a GPU.
        graphs: whether steps that only decode are CUDA graphs; None is where there is a GPU.
        kv_dtype: of keys and values: ``torch.float8_e4m3fn`` holds twice as many; that of the model if None.
        clock: seconds.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        model: Network,
        processor: AFNextProcessor | None = None,
        *,
        pages: int | None = None,
        slots: int = 64,
        chunk: int | None = None,
        deterministic: bool = False,
        costs: Costs | None = None,
        audio_bytes: int | None = None,
        offload: HostPages | None = None,
        ahead: bool | None = None,
        graphs: bool | None = None,
        kv_dtype: torch.dtype | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        chunk = (256 if deterministic else 8192) if chunk is None else chunk
        room = torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else None
        audio_bytes = min(AUDIO_BYTES, (room or 4 * AUDIO_BYTES) // 4) if audio_bytes is None else audio_bytes
        pages = default_pages(model, kv_dtype or model.dtype, room, audio_bytes) if pages is None else pages
        self.model, self.processor = model, processor
        self.clock, self.deterministic = clock, deterministic
        audio = self.audio = AudioCache(model, capacity=audio_bytes, deterministic=deterministic)
        self.offload = offload
        self.pool = PagePool(pages, None if offload is None else self._save)
        if costs is None and model.device.type == "cuda":
            costs = Costs.of(model.config, itemsize=model.dtype.itemsize)
        self.scheduler = Scheduler(
            self.pool,
            slots=slots,
            costs=costs,
            chunk=chunk,
            canonical=deterministic,
            encoded=lambda digest: not audio.missing([digest]),  # not self: its tensors go when it does
            restore=_nothing_saved if offload is None else offload.load_run,
            saved=().__contains__ if offload is None else offload.__contains__,
            clock=clock,
        )
        graphs = model.device.type == "cuda" and not deterministic if graphs is None else graphs
        size = {"pages": pages, "slots": slots, "chunk": chunk}
        self.runner = ModelRunner(
            model, self.audio, **size, deterministic=deterministic, graphs=graphs, kv_dtype=kv_dtype
        )
        self.growing: dict[Sequence, Growing] = {}
        self.early: dict[Sequence, list[bytes]] = {}  # what is computed ahead, and the windows that needs
        self.seated: dict[int, tuple[Sequence, int]] = {}
        self.drafting: list[Growing] = []
        self.led: list[Growing] = []  # answers whose next token the host has a say in
        self.grammars: dict[tuple[int, ...], Grammars] = {}  # by stop tokens
        self.ahead = model.device.type == "cuda" if ahead is None else ahead
        self.pending: LaunchedStep | None = None
        self.requests = self.steps = 0
        self.lock = RLock()

    def add(
        self,
        batch: Batch,
        params: SamplingParams | None = None,
        *,
        keys: Run[int] | None = None,
        encoded: tuple[Tensor, list[int]] | None = None,
        priority: int = 0,
        prediction: Run[int] | None = None,
    ) -> list[Request]:
        """Requests to answer every prompt of a batch.

        Args:
            batch: packed prompts, each ending where the answer begins. Windows without ``digests`` are hashed.
            params: how answers are generated; ``SamplingParams()`` if None.
            keys: a whole number for each prompt, which with ``params.seed`` decides its random tokens; how many
                requests came before it, if None.
            encoded: what ``model.encode_batch`` returned for this batch, when it is known already.
            priority: those with a higher one go first.
            prediction: as of ``submit``, for all of them.

        Raises:
            ValueError: a prompt that is empty, leaves no room in the context or needs more pages than there are, token
                ids past the vocabulary, recordings that do not match their placeholders, another number of keys.
        """
        params = seeded(params or SamplingParams())
        count = len(batch.cu_seqlens) - 1
        if keys is not None and len(keys) != count:
            raise ValueError(f"{len(keys)} keys for {count} prompts")
        with self.lock:
            prompts = self._prompts(batch, encoded)
            given, requests = range(self.requests, self.requests + count) if keys is None else keys, []
            try:
                for prompt, key in zip(prompts, given, strict=True):
                    requests.append(self.submit(prompt, params, key, priority, prediction))
            except BaseException:
                for request in requests:
                    self.abort(request)
                self.audio.release([span.digest for later in prompts[len(requests) + 1 :] for span in later.windows])
                raise
            return requests

    def submit(
        self,
        prompt: PromptTokens,
        params: SamplingParams,
        key: int,
        priority: int = 0,
        prediction: Run[int] | None = None,
    ) -> Request:
        """A request to answer one prompt.

        Args:
            prompt: its tokens. Its windows are held by the caller (``audio.hold``), who hands that over.
            params, key, priority: as of ``add``.
            prediction: token ids that the answers are expected to be, in part at least. It changes how many steps they
                take and nothing else; in the deterministic mode it is not used.

        Raises:
            ValueError: it leaves no room in the context, needs more pages than there are, or has parameters that do not
                fit the vocabulary, a grammar that cannot be compiled, or what needs a processor without one.
        """
        request = Request(prompt, seeded(params).resolved(self.model.config), key)
        with self.lock:
            self.requests += 1
            windows = [span.digest for span in prompt.windows]
            try:
                self._begin(request, priority, prediction)
            except BaseException:
                self.abort(request)
                raise
            finally:
                self.audio.release(windows)
        return request

    def _begin(self, request: Request, priority: int, prediction: Run[int] | None) -> None:
        """The answers of a request wait to be computed; each holds the windows."""
        prompt, params, config, leader = request.prompt, request.params, self.model.config.text, None
        limit = min(params.max_new_tokens, config.max_positions - len(prompt.ids))
        self.runner.sampler.entries(params)  # tokens past the vocabulary
        if prediction and not 0 <= min(prediction) <= max(prediction) < config.vocab_size:
            raise ValueError(f"a prediction of tokens 0 to {config.vocab_size - 1} is expected")
        if self.processor is not None:
            request.thinking = ends_inside(prompt.ids, self.processor.tokenizer)
        for sample in range(params.n):
            sequence = Sequence(prompt, limit, priority=priority, leader=leader)
            key = hashed(params.seed or 0, request.key, sample)
            answer = Growing(request, sample, sequence, key, self._finish(params, limit, request.thinking))
            if params.grammar is not None:
                answer.grammar = self._grammars(params).start(params.grammar)
            request.answers.append(answer)
            if limit < 1:
                answer.reason = "length"
                continue
            leader = leader or sequence
            self.scheduler.add(sequence)
            self.audio.hold(span.digest for span in prompt.windows)
            self.growing[sequence] = answer
            if answer.grammar is not None or params.max_thinking_tokens is not None:
                self.led.append(answer)
            elif prediction and not self.deterministic:
                answer.draft = AnswerDraft(prediction)
                self.drafting.append(answer)

    def compute_ahead(self, prompt: PromptTokens, priority: int = 0) -> Sequence:
        """Computes the full pages of what prompts will begin with, which they then find.

        What is returned is in ``early`` until they are computed.

        Its windows must be held; they are held for it until it is computed.

        Raises:
            ValueError: it needs more pages than there are.
        """
        with self.lock:
            sequence = Sequence(prompt, 0, priority=priority)
            self.scheduler.add(sequence)
            self.early[sequence] = [span.digest for span in prompt.windows]
            self.audio.hold(self.early[sequence])
        return sequence

    @torch.inference_mode()
    def step(self) -> list[Growing]:
        """Computes the next part of what runs.

        With ``ahead``, a step begins before the tokens of the one before it are known to the host, which deals with
        them while the device computes; an answer that has ended then costs one row more.

        Returns:
            the answers that grew or ended.

        Raises:
            Exception: the step could not be computed. Answers that had begun have ended, with this as their ``error``;
                those that wait go on with the next step.
        """
        with self.lock:
            try:
                return self._step()
            except BaseException as error:
                self._give_up(error)
                raise
            finally:
                self._forget_early()

    def _step(self) -> list[Growing]:
        step = self.scheduler.plan()
        launched = None
        if step:
            self.steps += 1
            launched = self._launch(step)
        before, self.pending = self.pending, None
        if launched is not None and self.ahead and not self.drafting and not self.led:
            self.pending, launched = launched, None
        grown = [] if before is None else self._take(before)
        if launched is not None:
            grown += self._take(launched)
            for chunk in step.verified:
                self._verified(chunk)
        if self.drafting:
            self._draft()
        return grown

    def _launch(self, step: EngineStep) -> LaunchedStep:
        for sequence in (*step.rows, *(chunk.sequence for chunk in step.verified)):
            self._seat(sequence)
        self.led = [answer for answer in self.led if answer.reason is None]
        forced = {one.sequence: one.finish.forced for one in self.led if one.finish.forced is not None}
        grammars = {one.sequence: one.grammar for one in self.led if one.grammar is not None}
        launched = self.runner.launch(step, forced, grammars)
        self.scheduler.launched(step)
        return launched

    def _give_up(self, error: BaseException) -> None:
        """A step was not completed: nobody knows what is in the pages of those that had begun."""
        self.pending = None
        begun = {*self.scheduler.prefilling, *self.scheduler.decoding, *self.scheduler.ahead}
        for sequence in [one for one in (*self.growing, *self.early) if one.slot >= 0 or one in begun]:
            sequence.computed = 0  # no other answer goes on from its pages
            if (answer := self.growing.get(sequence)) is None:
                self.scheduler.finish(sequence)
            else:
                self._end(answer, "error" if isinstance(error, Exception) else "abort", error)

    def _forget_early(self) -> None:
        """Gives back the windows of what has been computed ahead."""
        if self.early:
            there = {*self.scheduler.waiting, *self.scheduler.prefilling, *self.scheduler.ahead}
            for sequence in [one for one in self.early if one not in there]:
                self.audio.release(self.early.pop(sequence))

    def _take(self, launched: LaunchedStep) -> list[Growing]:
        """The tokens of a step."""
        results, top, now, grown = launched.results(), launched.top(), self.clock(), []
        for sequence, token, logprob in results:
            answer = self.growing.get(sequence)
            if answer is None:  # it has ended since the step was planned
                continue
            grown.append(answer)
            if token < 0:
                self._end(answer, "error", NotFinite(f"the scores of token {len(answer.tokens)} are NaN or infinite"))
            else:
                if sequence in top and (most := answer.request.params.logprobs):
                    answer.top.append(top[sequence][:most])
                self.scheduler.drawn(sequence, token)
                self._grown(answer, token, logprob, now)
        return grown

    def _verified(self, chunk: PromptChunk) -> None:
        if (answer := self.growing.get(chunk.sequence)) is not None:
            assert answer.draft is not None
            answer.draft.proposed += chunk.stop - chunk.start - 1
            answer.draft.accepted += chunk.sequence.length - chunk.start - 2
            self.scheduler.verified(chunk.sequence)

    def run(self) -> None:
        """Steps until nothing is left to do. What a callback raises is raised."""
        while self.scheduler.running() or self.pending is not None:
            for answer in self.step():
                if answer.raised is not None:
                    raise answer.raised

    def abort(self, request: Request) -> None:
        """A request's answers end where they are; its pages are free from now on."""
        with self.lock:
            for answer in request.answers:
                if answer.reason is None:
                    self._end(answer, "abort")

    def clear(self) -> None:
        """Forgets what was computed for requests that have ended: for when the weights have changed.

        Raises:
            RuntimeError: a request runs, or pages outside of the device are of the weights before.
        """
        with self.lock:
            if self.scheduler.running():
                raise RuntimeError(f"{self.scheduler.running()} answers are being generated; abort them first")
            if self.offload is not None:
                raise RuntimeError("offloaded pages are of the weights before: make an engine with a new HostPages")
            self.audio.clear()
            self.pool.clear()

    def _prompts(self, batch: Batch, encoded: tuple[Tensor, list[int]] | None) -> list[PromptTokens]:
        config, ids = self.model.config, batch.input_ids
        lengths, context = batch.cu_seqlens.diff().tolist(), config.text.max_positions
        for index, length in enumerate(lengths):
            if not 0 < length < context:
                raise ValueError(
                    f"conversation {index} has {length} tokens; 1 to {context - 1} leave room for an answer"
                )
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < config.text.vocab_size:
            wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise ValueError(f"token id {wrong} is past the vocabulary of {config.text.vocab_size}")
        clips: list[list[int]] = []
        digests: list[bytes] = []
        if batch.pcm is not None:
            clips = [part.tolist() for part in batch.samples.split(batch.windows_per_audio.tolist())]
            digests = self.audio.add(batch.pcm, batch.samples.tolist(), batch.digests)
        try:
            prompts = prompts_of(ids.tolist(), lengths, clips, config.audio_token_id, digests)
            if encoded is not None:
                for digest, features in zip(digests, encoded[0].split(encoded[1]), strict=True):
                    self.audio.put(digest, features)
        except BaseException:
            self.audio.release(digests)
            raise
        set_clocks(prompts, clips, config)
        return prompts

    def _draft(self) -> None:
        """What answers with a prediction are expected to go on with."""
        self.drafting = [answer for answer in self.drafting if answer.reason is None]
        for answer in self.drafting:
            assert answer.draft is not None
            answer.sequence.draft = answer.draft.propose()

    def _save(self, page: int, key: bytes, content: bytes) -> None:
        assert self.offload is not None
        self.offload.save(key, content, self.runner.kv[:, :, page])

    def _seat(self, sequence: Sequence) -> None:
        """The sampler's settings of a sequence that has got a slot."""
        answer, place = self.growing[sequence], (sequence, sequence.preemptions)
        if self.seated.get(sequence.slot) != place:
            self.seated[sequence.slot] = place
            sampler, ids = self.runner.sampler, sequence.prompt.ids
            sampler.admit(sequence.slot, answer.request.params, answer.key, ids, sequence.tokens)

    def _grown(self, answer: Growing, token: int, logprob: float, now: float) -> None:
        answer.logprobs.append(logprob)
        answer.times[1:] = [now]
        if not answer.times:
            answer.times.append(now)
        if answer.draft is not None:
            answer.draft.grown(answer.tokens)
        finish, ended = answer.finish, False
        if answer.grammar is not None:
            try:
                answer.grammar.accept(token)
            except ValueError as error:
                self._end(answer, "error", error)
                return
            ended = answer.grammar.ended
        text = finish.feed(token, ended=ended)
        if text:
            self._call(answer, answer.on_text, text)
        if finish.reason != "stop" or token not in finish.stop_ids:
            self._call(answer, answer.on_token, token)
        if finish.reason is not None and answer.reason is None:
            self._end(answer, finish.reason)

    def _call(self, answer: Growing, callback: Callable[[Any], Any] | None, what: Any) -> None:
        """Calls back, unless that has raised something before, which ends the answer."""
        if callback is None or answer.raised is not None:
            return
        try:
            callback(what)
        except Exception as error:
            answer.raised = error
            if answer.reason is None:
                self._end(answer, "error")
            answer.reason, answer.error = "error", error

    def _finish(self, params: SamplingParams, limit: int, thinking: bool) -> Finish:
        """What ends an answer; text is kept where there is a processor."""
        if self.processor is None:
            if params.stop_strings or params.max_thinking_tokens is not None:
                raise ValueError("stop strings and a cap on thinking need the engine's processor")
            return Finish(params, limit)
        capped, tokenizer = params.max_thinking_tokens is not None, self.processor.tokenizer
        end = tokenizer.encode(END_OF_THINKING, add_special_tokens=False).ids if capped else ()
        return Finish(params, limit, decode=self.processor.decode, end_of_thinking=end, thinking=thinking)

    def _grammars(self, params: SamplingParams) -> Grammars:
        if self.processor is None:
            raise ValueError("a grammar needs the engine's processor")
        stop = params.stop_token_ids or ()
        if not stop:
            raise ValueError("a grammar needs a stop token after it, and stop_token_ids is empty")
        if stop not in self.grammars:
            size = self.model.config.text.vocab_size
            self.grammars[stop] = Grammars(self.processor.tokenizer.to_str(), size, stop)
        return self.grammars[stop]

    def _end(self, answer: Growing, reason: Reason, error: BaseException | None = None) -> None:
        answer.reason, answer.error = reason, error
        sequence, text = answer.sequence, answer.finish.end(reason) if answer.finish.reason is None else ""
        if self.growing.pop(sequence, None) is not None:
            for slot in [slot for slot, (one, _) in self.seated.items() if one is sequence]:
                del self.seated[slot]
                self.runner.sampler.release(slot)
            self.scheduler.finish(sequence)
            for key in sequence.keys if error is not None else ():
                self.pool.forget(key)
            self.audio.release([span.digest for span in answer.request.prompt.windows])
        if text:
            self._call(answer, answer.on_text, text)


def _nothing_saved(pages: list[tuple[bytes, bytes]]) -> list[Tensor]:
    return []


def default_pages(model: Network, dtype: torch.dtype, room: int | None, audio_bytes: int) -> int:
    """Pages for nine tenths of the bytes that are free on a GPU, less those of audio; where it is not known what is
    free, as many as one context has, at least 720, which take memory when they are first written to."""
    config = model.config.text
    page = config.layers * 2 * PAGE * config.kv_heads * config.head_dim * dtype.itemsize
    if room is not None:
        return max(1, int(0.9 * room - audio_bytes) // page)
    return max(46_080, config.max_positions) // PAGE + 64
