"""What stages of a voice read of a record: sound at the codec's rate, and the text that is said in it."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from afn_model.audio.recording import Audio, load
from afn_model.data.records import Sample, audios_of
from afn_model.data.speech_checks import QUIET
from afn_model.files import read_json
from afn_model.prompt.processor import AFNextProcessor
from afn_model.speech.config import CodecConfig, TalkerConfig, voice_config
from afn_model.speech.text import spoken_text
from afn_model.train.codec import CodecSettings
from afn_model.train.curriculum import Stage
from afn_model.train.heard import HeardSpeech, draw
from afn_model.train.talker import TalkerSettings
from afn_model.train.values import made

CROP, PROMPTED, PROMPT = 1, 2, 3  # what is drawn of a record
MOST_TOKENS = 2.0  # of text for an audio frame: nobody speaks so fast


class VoiceReader(AFNextProcessor):
    """The processor of a stage of a voice, whose loader reads samples by it.

    Attributes:
        codec, talker: the configuration of the voice.
        settings: of the stage's method.
        context: positions of prompt, text and sound of a talker's sample.
    """

    codec: CodecConfig
    talker: TalkerConfig | None
    settings: CodecSettings | TalkerSettings
    context: int

    @classmethod
    def of_stage(cls, folder: Path, stage: Stage) -> VoiceReader:
        """The reader of a stage that starts from ``folder``.

        Raises:
            ValueError: what ``from_pretrained`` raises, settings out of range, a context or tokens beyond the talker's.
        """
        found = cls.from_pretrained(folder, pcm_dtype=torch.int16)
        assert isinstance(found, cls)
        config = voice_config(read_json(folder / "config.json"))
        kind = CodecSettings if stage.method == "codec" else TalkerSettings
        found.settings = made(kind, getattr(stage, stage.method), f"stage {stage.name}: {stage.method}")
        found.codec, found.talker, found.context = config.codec, config.talker, stage.context
        if stage.method == "talker" and config.talker is not None:
            most = config.talker.text.max_positions
            if stage.context > most:
                beyond = f"is more than the talker's {most} positions"
                raise ValueError(f"stage {stage.name}: context {stage.context} {beyond}")
            given, has = found.tokenizer.get_vocab_size(), config.talker.text.vocab_size
            if given > has:
                raise ValueError(f"stage {stage.name}: {folder} has a tokenizer of {given} tokens, its talker {has}")
        return found

    def read_sample(self, sample: Sample, longest: float, seed: int) -> HeardSpeech:
        """A sample's last recording, of the codec's crop or whole, and for the talker its text and speaker prompt.

        Raises:
            ValueError: no recording, one that cannot be read, is silent or shorter than an audio frame; for the talker
                also no text, nothing in it to say, too much of it, or a speaker prompt that is wanted and missing.
        """
        audios = audios_of(sample)
        if not audios:
            raise ValueError("no recording")
        settings = self.settings
        if isinstance(settings, CodecSettings):
            pcm = cropped(self.heard(audios[-1], longest), settings.samples(self.codec), draw(seed, CROP))
            return HeardSpeech(torch.zeros(0, dtype=torch.long), None, [pcm], seed=seed)
        said = next((turn.text for turn in reversed(sample.turns) if turn.role == "assistant"), "")
        ids = self.tokenizer.encode(spoken_text(said), add_special_tokens=False).ids
        pcm = self.heard(audios[-1], longest)
        frames = -(-len(pcm) // self.codec.frame)
        if len(ids) > MOST_TOKENS * frames:
            raise ValueError(f"text too long: {len(ids)} tokens for {frames} audio frames")
        # A step has one token at most, and the end comes after the last.
        steps = max(frames, len(ids) + 1)
        clips = [F.pad(pcm, (0, steps * self.codec.frame - len(pcm)))]
        if len(audios) < 2 and settings.needs_prompt:
            raise ValueError("no speaker prompt: an earlier recording of the same voice is expected")
        if len(audios) > 1 and draw(seed, PROMPTED) < settings.prompt_share:
            most = max(round(settings.prompt_seconds * self.codec.frame_rate), 1)
            most = min(most, self.talker.prompt if self.talker else most) * self.codec.frame
            prompt = self.heard(audios[-2], longest, "the speaker prompt: ")
            clips.append(cropped(prompt, min(most, len(prompt)), draw(seed, PROMPT)))
        each = 2 if self.talker is None or self.talker.interleaved else 1
        places = each * steps + sum(-(-len(clip) // self.codec.frame) for clip in clips[1:])
        if places > self.context:
            raise ValueError(f"too long: {places} positions of prompt, text and sound in a context of {self.context}")
        return HeardSpeech(torch.tensor(ids), None, clips, seed=seed)

    def heard(self, audio: Audio, longest: float, what: str = "") -> Tensor:
        """[n] int16 samples at the codec's rate; ValueError for silence, or less than an audio frame."""
        pcm = load(audio, max_seconds=longest, dtype=torch.int16, to=self.codec.sample_rate)
        if len(pcm) < self.codec.frame:
            seconds = (count / self.codec.sample_rate for count in (len(pcm), self.codec.frame))
            raise ValueError("{}{:.3f} s of sound, shorter than an audio frame of {:.3f} s".format(what, *seconds))
        if int(pcm.to(torch.int32).abs().max()) < math.ceil(QUIET * 32768):
            raise ValueError(f"{what}silence")
        return pcm


def cropped(pcm: Tensor, length: int, drawn: float) -> Tensor:
    """``length`` samples from a place that ``drawn`` (0 to below 1) says; silence behind a shorter recording."""
    first = int(drawn * (len(pcm) - length + 1)) if len(pcm) > length else 0
    return F.pad(pcm[first : first + length], (0, max(length - len(pcm), 0))).clone()
