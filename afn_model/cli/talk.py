"""``afn talk``: spoken questions, answered aloud. Heavy imports wait until it runs."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from afn_model.cli.answering import opening
from afn_model.cli.messages import show_error, show_finish
from afn_model.cli.recordings import expand, part_about

if TYPE_CHECKING:
    import queue

    import numpy as np

    from afn_model.cli.sound import SoundOut
    from afn_model.infer.sampling_params import SamplingParams
    from afn_model.prompt.processor import AFNextProcessor
    from afn_model.speech.conversation import SpokenAnswer, SpokenAnswers, VoiceConversation
    from afn_model.speech.speaker import SpeakerPrompt
    from afn_model.speech.voice import AFVoice

QUIET_MS, PADDING_MS = 700, 300  # that end a question, and that it begins before it is loud


def add_talk(parser: ArgumentParser) -> None:
    told = "a spoken question; several are one conversation. Without one, and without --text: the microphone"
    parser.add_argument("audio", nargs="*", metavar="AUDIO", help=told)
    parser.add_argument("--voice", required=True, metavar="DIR", help="voice folder: a codec and a talker")
    told = "the sound: a file by its ending, - for 16-bit PCM of 24 kHz; default the loudspeaker"
    parser.add_argument("--out", metavar="FILE", help=told)
    parser.add_argument("--text", metavar="TEXT", help="say this; needs a --model only for its tokenizer")
    parser.add_argument("--prompt", metavar="TEXT", help="more text of each question, behind its recording")
    parser.add_argument("--speaker", metavar="CLIP", help="speak like this recording of one person, of 1 s or more")
    told = "who has agreed that the voice of --speaker is used, and when"
    parser.add_argument("--consent", metavar="TEXT", help=told)
    told = "questions as they come: - is 16-bit PCM of 16 kHz, mono; a question ends where it gets quiet"
    parser.add_argument("--stream", choices=("-",), help=told)
    told = "how loud speech is, 0 to 1: at 0.5 it is above -40 dB of full scale"
    parser.add_argument("--threshold", type=float, default=0.5, metavar="T", help=told)


def talk(args: Namespace) -> None:
    check(args)
    from afn_model.cli.session import open_session, sampling_params
    from afn_model.cli.sound import output
    from afn_model.session import device_named
    from afn_model.speech.conversation import VoiceConversation, spoken_answers
    from afn_model.speech.voice import AFVoice

    voice = AFVoice.from_pretrained(args.voice, device=device_named(args.device))
    if args.text is not None:
        answers = spoken_answers(voice, tokenizer_of(args), streams=1)
        with output(args.out, answers.rate) as out:
            say(args, answers, speaker_of(args, voice), out)
        return
    params = sampling_params(args)
    with open_session(args) as session:
        answers = spoken_answers(voice, session.processor.tokenizer, streams=1)
        speaker = speaker_of(args, voice)
        with output(args.out, answers.rate) as out:
            conversation = VoiceConversation(session.engine, answers, speaker)
            talking = Talking(conversation, session.processor, params, out, args)
            if not args.audio:
                from afn_model.cli.sound import incoming

                with incoming(args.stream) as pieces:
                    try:
                        live(talking, pieces)
                    except KeyboardInterrupt:
                        talking.interrupt()
                return
            for file in [one for name in args.audio for one in expand([name])]:  # each as often as it is named
                talking.ask(part_about(file))
                talking.finish()


def check(args: Namespace) -> None:
    """Raises:
    ValueError: options that do not go together.
    """
    given = {"recordings": bool(args.audio), "--text": args.text is not None, "--stream": args.stream is not None}
    several = [name for name, there in given.items() if there]
    if len(several) > 1:
        raise ValueError(f"{several[0]} and {several[1]}: one of them says what is answered or said")
    if args.text is None and args.model is None:
        raise ValueError("the following arguments are required: --model (afn talk --help says more)")
    if (args.speaker is None) != (args.consent is None):
        raise ValueError("--speaker and --consent go together: whose voice it is, and who has agreed to its use, when")
    if args.consent is not None and not args.consent.strip():
        raise ValueError("--consent: who has agreed, and when, is expected")
    if args.text is not None and args.prompt is not None:
        raise ValueError("--prompt is of a question, and --text is not one")
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold:g}: expected is 0 to 1")
    if args.out not in (None, "-"):  # before anything is loaded
        from afn_model.cli.sound import form_of

        form_of(args.out)


def tokenizer_of(args: Namespace) -> Any:
    """The model's, or the one that lies in the voice's folder."""
    from afn_model.prompt.processor import AFNextProcessor

    try:
        return AFNextProcessor.from_pretrained(args.model or args.voice).tokenizer
    except ValueError as error:
        if args.model is not None:
            raise
        raise ValueError(f"{error}; --model DIR names a folder that has a tokenizer") from None


def speaker_of(args: Namespace, voice: AFVoice) -> SpeakerPrompt | None:
    """Raises:
    ValueError: a recording that is silent or too short.
    """
    if args.speaker is None:
        return None
    from afn_model.audio.decode import load_audio
    from afn_model.speech.speaker import speaker_prompt

    rate = voice.config.codec.sample_rate
    try:
        return speaker_prompt(voice.codec, load_audio(args.speaker, to=rate), rate, consent=args.consent)
    except ValueError as error:
        raise error if args.speaker in str(error) else ValueError(f"{args.speaker}: {error}") from None


def say(args: Namespace, answers: SpokenAnswers, speaker: SpeakerPrompt | None, out: SoundOut) -> None:
    """Says a text."""
    from afn_model.speech.text import spoken_text

    answer = answers.open(speaker, seed=args.seed)
    ids = answers.tokenizer.encode(spoken_text(args.text), add_special_tokens=False).ids
    answer.say(ids, answers.clock())
    answer.end(answers.clock())
    while answers.busy:
        for one, pcm in answers.step():
            one.heard(len(pcm))
            out.write(pcm)
    tell(args, args.text, answer)


def tell(args: Namespace, text: str, answer: SpokenAnswer, **more: Any) -> None:
    """What was said and how fast, as JSON or as a line on stderr."""
    if answer.error is not None:
        raise answer.error
    times = answer.times.as_json()
    if args.json:
        row = {"answer": text, "finish": answer.reason, "speech": times}
        print(json.dumps(more | row, ensure_ascii=False), file=text_file(args), flush=True)
    elif not args.quiet:
        since = times["after_token"] if times["after_question"] is None else times["after_question"]
        factor = times["real_time_factor"]
        parts = [f"{times['audio']:.1f} s of sound"]
        if since is not None and factor is not None:
            parts += [f"the first after {since:.2f} s", f"real-time factor {factor:.2f}"]
        print(f"afn: {', '.join(parts)}", file=sys.stderr)


def text_file(args: Namespace) -> Any:
    """Where text goes beside the sound."""
    return sys.stderr if args.out == "-" else sys.stdout


class Talking:
    """A conversation of spoken questions and what is printed of it.

    Args:
        conversation: that answers.
        processor: of the model.
        params: of answers.
        out: where sound goes.
        args: of the command line.
    """

    def __init__(
        self,
        conversation: VoiceConversation,
        processor: AFNextProcessor,
        params: SamplingParams,
        out: SoundOut,
        args: Namespace,
    ):
        self.conversation, self.processor, self.params, self.out, self.args = conversation, processor, params, out, args
        self.messages: list[dict[str, Any]] = opening(args)
        self.text: list[str] = []
        self.answer: SpokenAnswer | None = None

    @property
    def busy(self) -> bool:
        return self.conversation.busy

    def ask(self, recording: dict[str, Any]) -> None:
        """Begins to answer a question; turns that the model's context has no room for are forgotten.

        Raises:
            ValueError: it cannot be answered.
        """
        self.interrupt()
        asked = self.conversation.answers.clock()
        content = [recording, *([{"type": "text", "text": self.args.prompt}] if self.args.prompt else [])]
        question = {"role": "user", "content": content}
        try:
            self._ask([*self.messages, question], asked)
        except ValueError:
            alone = opening(self.args)
            if len(self.messages) == len(alone):
                raise
            self._ask([*alone, question], asked)
            self.messages = alone
        self.messages.append(question)

    def _ask(self, messages: list[dict[str, Any]], asked: float) -> None:
        batch = self.processor(messages)
        self.text = []
        self.answer = self.conversation.ask(batch, self.params, asked=asked, on_text=self._show)

    def _show(self, text: str) -> None:
        self.text.append(text)
        if not self.args.json:
            print(text, end="", file=text_file(self.args), flush=True)

    def step(self) -> None:
        """Brings the answer on, and tells of it when it has ended.

        Raises:
            ValueError: it could not be completed.
        """
        request = self.conversation.request
        try:
            pcm = self.conversation.step()
        except ValueError:
            self.answer = None
            self.messages.pop()  # as if it had not been asked
            raise
        if self.answer is None:
            return
        self.answer.heard(len(pcm))
        if len(pcm):
            self.out.write(pcm)
        if request is not None and self.conversation.request is None:
            self._end_line()
            growing = request.answers[0]
            if not self.args.quiet:
                show_finish(growing.reason or "abort", f"after {len(growing.tokens)} tokens")
        if not self.busy:
            self._told()

    def finish(self) -> None:
        """To the end of the answer."""
        while self.busy:
            self.step()

    def interrupt(self) -> None:
        """Somebody speaks: the answer ends here, and what is not heard of it yet is not."""
        self.out.stop()
        if self.answer is not None:
            if self.conversation.request is not None:
                self._end_line()
            self.conversation.stop()
            self._told()

    def _end_line(self) -> None:
        if self.text and not self.args.json:
            print(file=text_file(self.args), flush=True)

    def _told(self) -> None:
        answer, self.answer, text = self.answer, None, "".join(self.text)
        self.messages.append({"role": "assistant", "content": text})
        if answer is not None:
            tell(self.args, text, answer, model=self.args.model)


class Ear:
    """Finds questions in what is heard: from where somebody begins to speak to where it has been quiet for a while.

    Args:
        talking: what answers them; it is interrupted where one begins.
        threshold: of ``VoiceActivity``.
    """

    def __init__(self, talking: Talking, threshold: float):
        import numpy as np

        from afn_model.audio.frames import SAMPLE_RATE
        from afn_model.serve.voice_activity import VoiceActivity

        self.talking, self.voice = talking, VoiceActivity(SAMPLE_RATE, threshold, PADDING_MS, QUIET_MS)
        self.heard, self.at = np.empty(0, dtype=np.int16), 0  # what a question may be made of, and its first sample

    def hear(self, pcm: np.ndarray) -> None:
        """The next samples [n] int16 at 16 kHz."""
        import numpy as np

        self.heard = np.concatenate([self.heard, pcm])
        for what, at in self.voice.feed(pcm):
            if what == "started":
                self._cut(at)
                self.talking.interrupt()
            else:
                self._ask(self._cut(at))
        longest = self.talking.processor.max_seconds
        if not self.voice.speaking:
            self._cut(max(self.at, self.at + len(self.heard) - self.voice.keep))
        elif len(self.heard) > longest * 16_000:
            self._ask(self._cut(self.at + len(self.heard)))
            self.voice.stop(self.at)

    def end(self) -> None:
        """Nothing more comes: a question that was being asked is asked."""
        if self.voice.speaking:
            self._ask(self._cut(self.at + len(self.heard)))

    def _cut(self, at: int) -> np.ndarray:
        taken, self.heard = self.heard[: at - self.at], self.heard[at - self.at :].copy()
        self.at = at
        return taken

    def _ask(self, pcm: np.ndarray) -> None:
        try:
            self.talking.ask({"type": "audio", "audio": pcm.astype("float32") / 32768})
        except ValueError as error:  # the next one may be answered
            show_error(error)


def live(talking: Talking, pieces: queue.Queue[np.ndarray | None]) -> None:
    """Answers questions as they come; what has come is heard before each step, so that who speaks is heard within one.

    Returns when no more comes and the last answer has been said.
    """
    import queue

    ear, more = Ear(talking, talking.args.threshold), True
    while more or talking.busy:
        try:
            while more:
                piece = pieces.get(block=not talking.busy)
                more = piece is not None
                if piece is None:
                    ear.end()
                else:
                    ear.hear(piece)
        except queue.Empty:
            pass
        if talking.busy:
            try:
                talking.step()
            except ValueError as error:
                show_error(error)
