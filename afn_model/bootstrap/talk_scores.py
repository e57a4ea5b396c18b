"""What a small voice reaches: its codec on held-out sound, its talker on held-out phrases, and both behind a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from afn_model.afnext import AFNext
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.recording import load
from afn_model.audio.resample import resample
from afn_model.bootstrap.speech_scores import rate as word_error_rate
from afn_model.bootstrap.speech_scores import read
from afn_model.curate.stand_ins.grammar_recogniser import PocketSphinx
from afn_model.data.plan import question
from afn_model.data.records import audios_of, parse_sample
from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.processor import AFNextProcessor
from afn_model.scoring.text import words_in
from afn_model.speech.codec import Codec
from afn_model.speech.conversation import SpokenAnswers, VoiceConversation
from afn_model.speech.engine import SpeechEngine, SpokenStream
from afn_model.speech.measures import mel_distance, speaker_similarity
from afn_model.speech.speaker import SpeakerPrompt, speaker_prompt
from afn_model.speech.text import spoken_text
from afn_model.speech.voice import AFVoice
from afn_model.world.speeches import SPOKEN, TALKERS, spoken_words

CONSENT = "a synthetic voice of eSpeak NG: nobody's"
STREAMS = 16  # said together
LONGEST = 6.0  # seconds of a phrase at most
LOWEST, HIGHEST = 60.0, 400.0  # Hz of a voice
PITCH_WINDOW, PITCH_HOP = 0.04, 0.02  # seconds
VOICED = 0.5  # least autocorrelation of a voiced frame
FURTHER, NOISE = 1e-15, 100.0  # of the recogniser, which hears peaks of 0.9
ALSO = {"four": "F AA R"}  # eSpeak's women open its vowel: it was heard as "alarm" or "clock"
MOST_TOKENS = 12  # of an answer of the demo's model
ANSWERED = ("word", "sound", "onset")  # what it is asked
Pair = tuple[str, str]  # words that were recognised, and those that are true


@dataclass(frozen=True)
class SoundExample:
    """A record's sound at some rate, by which the report shows what was heard.

    Args:
        name: of its file.
        words: that are true.
        sounds: by what they are ("original", "codec", "said", "answer"), [n] float32.
        heard: what the recogniser made of each, where there is one.
    """

    name: str
    words: str
    sounds: dict[str, Tensor]
    heard: dict[str, str]


class Listener:
    """pocketsphinx with a grammar of single words, any number of them in any order, for sound of any loudness.

    Without the package ``missing`` says why, and nothing is heard.
    """

    def __init__(self):
        self.recogniser, self.missing = None, ""
        try:
            self.recogniser = PocketSphinx(SPOKEN, further=FURTHER, noise=NOISE, also=ALSO)
        except ValueError as error:
            self.missing = str(error)

    def __call__(self, pcm: Tensor, rate: int) -> str | None:
        """The words of samples [n] float32; None without a recogniser."""
        if self.recogniser is None:
            return None
        pcm = at_rate(pcm, rate, SAMPLE_RATE)
        if not len(pcm) or not pcm.any():
            return ""
        pcm = (pcm * (0.9 * 32767 / pcm.abs().max())).round().to(torch.int16)
        return " ".join(word["word"] for word in self.recogniser.words(pcm))


def at_rate(pcm: Tensor, rate: int, to: int) -> Tensor:
    """[n] float32 samples at another rate."""
    return torch.cat(list(resample([pcm.detach().float().cpu()], rate, to)))


def sounds_of(record: dict, folder: Path, rate: int) -> list[Tensor]:
    """The recordings of a record, [n] float32 each."""
    return [at_rate(load(audio), SAMPLE_RATE, rate) for audio in audios_of(parse_sample(record, folder))]


def in_order(said: Sequence[str], true: Sequence[str]) -> int:
    """How many of the true words were said in their order: the longest common subsequence."""
    row = [0] * (len(true) + 1)
    for word in said:
        before = row[:]
        for place, other in enumerate(true, 1):
            row[place] = before[place - 1] + 1 if word == other else max(before[place], row[place - 1])
    return row[-1]


def word_scores(pairs: Sequence[Pair]) -> dict[str, float]:
    """``wer``, and ``right``: the share of the true words that were recognised in their order."""
    right = sum(in_order(words_in(said), words_in(true)) for said, true in pairs)
    total = sum(len(words_in(true)) for _, true in pairs)
    return {"wer": round(word_error_rate(pairs), 4), "right": round(right / max(total, 1), 4)}


def fundamental(pcm: Tensor, rate: int) -> float | None:
    """The median fundamental frequency, in Hz; None where nothing is voiced.

    Of each window of 40 ms r(τ) = Σ x[t] x[t + τ] / √(Σ x[t]² · Σ x[t + τ]²), and the frequency is 1/τ of the first
    peak that is 0.9 of the highest or more; a window counts where r is at least 0.5 and it is no quieter than 20 dB
    below the loudest.
    """
    size, low, high = round(PITCH_WINDOW * rate), int(rate / HIGHEST), int(rate / LOWEST)
    if len(pcm) < size + high:
        return None
    windows = pcm.detach().double().cpu().unfold(0, size + high, round(PITCH_HOP * rate))
    power = windows[:, :size].square().sum(1)
    windows = windows[(power > 0.01 * power.max()) & (power > 0)]
    if not len(windows):
        return None
    first = windows[:, :size]
    points = 1 << (size + high + size).bit_length()
    product = torch.fft.irfft(torch.fft.rfft(windows, points) * torch.fft.rfft(first, points).conj(), points)
    energy = F.pad(windows.square().cumsum(1), (1, 0))
    lags = torch.arange(low, high)
    later = energy[:, lags + size] - energy[:, lags]
    found = product[:, lags] / (later * energy[:, size : size + 1]).sqrt().clamp(min=1e-12)
    peak = found[:, 1:-1]
    is_peak = (peak >= found[:, :-2]) & (peak >= found[:, 2:]) & (peak >= VOICED)
    best = torch.where(is_peak, peak, -1.0).max(1, keepdim=True).values
    voiced = best[:, 0] >= VOICED
    if not voiced.any():
        return None
    period = (is_peak & (peak >= 0.9 * best))[voiced].int().argmax(1) + low + 1
    return rate / float(period.double().median())


def nearer(pcm: Tensor, rate: int, pitches: dict[str, float]) -> str:
    """The talker whose fundamental frequency is nearest, by ratio; "" where there is none to hear."""
    own = fundamental(pcm, rate)
    return "" if own is None else min(pitches, key=lambda voice: abs(np.log(own / pitches[voice])))


def nearer_spectrum(pcm: Tensor, rate: int, spoken: dict[str, Tensor]) -> str:
    """The talker whose long-term spectrum is most alike, of what each has ``spoken``; "" for silence."""
    return max(spoken, key=lambda voice: speaker_similarity(spoken[voice], pcm, rate)) if pcm.any() else ""


@torch.inference_mode()
def codec_scores(
    codec: Codec, world: Path, axes: Sequence[str], most: int, listener: Listener
) -> tuple[dict[str, Any], list[SoundExample]]:
    """Mel distance in dB of held-out records, and the words heard in them and through the codec; and the first ones."""
    rate = codec.config.sample_rate
    found: dict[str, Any] = {"bits_per_second": codec.config.bits_per_second, "recogniser": listener.missing}
    shown = []
    for axis in axes:
        records, distances, words = read(world / "heldout" / f"{axis}.jsonl", most), [], {"original": [], "codec": []}
        for record in records:
            pcm = sounds_of(record, world / "heldout", rate)[-1]
            through = codec(pcm[None], codec.config.levels)[0][0]
            distances.append(mel_distance(pcm, through, rate))
            sounds, true = {"original": pcm, "codec": through}, record["truth"]["words"]
            heard = heard_in(sounds, rate, listener)
            for name, text in heard.items():
                words[name].append((text, true))
            if len(shown) < len(axes) and len(distances) == 1:
                shown.append(SoundExample(f"codec-{axis}", true, sounds, heard))
        found[axis] = {"n": len(records), "mel_distance": round(mean(distances), 3)}
        if listener.recogniser is not None:
            found[axis] |= {name: word_scores(pairs) for name, pairs in words.items()}
    return found, shown


def heard_in(sounds: dict[str, Tensor], rate: int, listener: Listener) -> dict[str, str]:
    texts = {name: listener(pcm, rate) for name, pcm in sounds.items()}
    return {name: text for name, text in texts.items() if text is not None}


def tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """What a talker is given of a text, as its training gave it."""
    return tokenizer.encode(spoken_text(text), add_special_tokens=False).ids


def say(
    voice: AFVoice, asked: Sequence[tuple[list[int], SpeakerPrompt]], seed: int = 0
) -> list[tuple[SpokenStream, Tensor]]:
    """Texts by speakers, ``STREAMS`` at a time: each one's stream, which says how it ended, and its sound."""
    engine = SpeechEngine(voice, streams=STREAMS, longest=round(LONGEST * voice.config.codec.frame_rate))
    done = list[tuple[SpokenStream, Tensor]]()
    for first in range(0, len(asked), STREAMS):
        parts: dict[SpokenStream, list[Tensor]] = {}
        for number, (ids, speaker) in enumerate(asked[first : first + STREAMS]):
            stream = engine.open(speaker, seed=seed + first + number)
            stream.say(ids)
            stream.end()
            parts[stream] = []
        while not all(stream.done for stream in parts):
            for stream, pcm in engine.step():
                parts[stream].append(pcm)
        done += [(stream, torch.cat([torch.zeros(0), *several])) for stream, several in parts.items()]
    return done


@torch.inference_mode()
def talker_scores(
    voice: AFVoice, tokenizer: Tokenizer, world: Path, most: int, listener: Listener, seed: int = 0
) -> tuple[dict[str, Any], list[SoundExample]]:
    """Held-out phrases said in both voices: words, ends, lengths and speakers; and the first ones of each voice.

    ``wrong_speaker`` is the share whose fundamental frequency is nearer to the other talker's, or that has none, and
    ``wrong_spectrum`` that whose long-term spectrum is more like the other's. Each is also of the recordings
    (``original_``) and of what the codec makes of them (``codec_``).
    """
    rate, heldout = voice.config.codec.sample_rate, world / "heldout"
    records = read(heldout / "spoken.jsonl", most)
    recorded = [sounds_of(record, heldout, rate) for record in records]
    prompts = [speaker_prompt(voice.codec, one[0], rate, consent=CONSENT) for one in recorded]
    asked = [(tokens(tokenizer, record["truth"]["answer"]), p) for record, p in zip(records, prompts, strict=True)]
    streams = say(voice, asked, seed)
    voices = [record["truth"]["voice"] for record in records]
    pitches = pitches_of(zip(voices, (one[-1] for one in recorded), strict=True), rate)
    spoken = {
        who: torch.cat([one[-1] for one, by in zip(recorded, voices, strict=True) if by == who]) for who in voices
    }
    rows, shown = list[dict[str, Any]](), list[SoundExample]()
    for record, sounds, (stream, pcm) in zip(records, recorded, streams, strict=True):
        original, true, who = sounds[-1], record["truth"]["words"], record["truth"]["voice"]
        heard = heard_in({"original": original, "said": pcm}, rate, listener)
        alike = speaker_similarity(original, pcm, rate) if pcm.any() else 0.0
        rows.append({"voice": who, "true": true, "ended": stream.reason == "end", "alike": alike, **heard})
        rows[-1]["ratio"] = len(pcm) / len(original)
        through = voice.codec(original[None], voice.config.codec.levels)[0][0]
        for name, sound in {"": pcm, "original_": original, "codec_": through}.items():
            rows[-1][f"{name}wrong_speaker"] = nearer(sound, rate, pitches) != who
            rows[-1][f"{name}wrong_spectrum"] = nearer_spectrum(sound, rate, spoken) != who
        if sum(one.name.startswith(f"talker-{who}") for one in shown) < 2:
            shown.append(SoundExample(f"talker-{who}-{len(shown)}", true, {"original": original, "said": pcm}, heard))
    found: dict[str, Any] = {"recogniser": listener.missing, "pitch": {k: round(v, 1) for k, v in pitches.items()}}
    for group in (*TALKERS, "all"):
        if some := [row for row in rows if group in ("all", row["voice"])]:
            found[group] = _of_group(some, listener)
    return found, shown


def pitches_of(sounds: Iterable[tuple[str, Tensor]], rate: int) -> dict[str, float]:
    """The median fundamental frequency of each voice."""
    found: dict[str, list[float]] = {}
    for voice, pcm in sounds:
        if (pitch := fundamental(pcm, rate)) is not None:
            found.setdefault(voice, []).append(pitch)
    return {voice: median(values) for voice, values in found.items()}


def _of_group(rows: Sequence[dict[str, Any]], listener: Listener) -> dict[str, Any]:
    found: dict[str, Any] = {
        "n": len(rows),
        "ended": round(mean(row["ended"] for row in rows), 4),
        "length_ratio": round(median(row["ratio"] for row in rows), 4),
        "similarity": round(mean(row["alike"] for row in rows), 4),
    }
    for wrong in ("wrong_speaker", "wrong_spectrum"):
        found |= {
            name + wrong: round(mean(row[name + wrong] for row in rows), 4) for name in ("", "original_", "codec_")
        }
    if listener.recogniser is not None:
        found["said"] = word_scores([(row["said"], row["true"]) for row in rows])
        found["original"] = word_scores([(row["original"], row["true"]) for row in rows])
    return found


def speed(
    voice: AFVoice, tokenizer: Tokenizer, texts: Sequence[str], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Texts one by one in the default voice, all of a text given at once: seconds to the first sound, between chunks
    and for a second of sound (medians over texts; the longest gap of all)."""
    engine = SpeechEngine(voice, streams=1, longest=round(LONGEST * voice.config.codec.frame_rate))
    firsts, gaps, factors = list[float](), list[float](), list[float]()
    for number, text in enumerate([texts[0], *texts]):  # the first one warms up
        stream, ids, samples = engine.open(seed=number), tokens(tokenizer, text), 0
        began, came = clock(), list[float]()
        stream.say(ids)
        stream.end()
        while not stream.done:
            for _, pcm in engine.step():
                samples += len(pcm)
                came.append(clock())
        if number and came:
            firsts.append(came[0] - began)
            gaps += [b - a for a, b in pairwise(came)]
            factors.append((came[-1] - began) / (samples / voice.config.codec.sample_rate))
    return {
        "n": len(firsts),
        "first_audio": round(median(firsts), 4),
        "gap": round(median(gaps), 4) if gaps else 0.0,
        "longest_gap": round(max(gaps, default=0.0), 4),
        "chunk": round(1 / voice.config.codec.frame_rate, 4),
        "real_time_factor": round(median(factors), 4),
    }


@torch.inference_mode()
def answered_aloud(
    folder: Path, voice: AFVoice, most: int, listener: Listener
) -> tuple[dict[str, Any], list[SoundExample]]:
    """Held-out recordings of ``afn demo``'s folder that its model is asked about, one by one, and answers aloud.

    The time to the first sound counts from the end of the question: decoding the recording, the encoder and the first
    token of the text are in it. ``answered`` is the share of right answers, of which only those that are English words
    of the phrases, or times, can be heard. ``words`` compares what was heard with the text that was answered.
    """
    model, processor = AFNext.from_pretrained(folder), AFNextProcessor.from_pretrained(folder)
    rate, heldout = voice.config.codec.sample_rate, folder / "corpus" / "heldout"
    engine = SpeechEngine(voice, streams=1, longest=round(LONGEST * voice.config.codec.frame_rate))
    talk = VoiceConversation(Engine(model, processor), SpokenAnswers(engine, processor.tokenizer, rate))
    records = []
    for axis in ANSWERED:
        sayable = [one for one in read(heldout / f"{axis}.jsonl") if spoken_words(one["truth"]["answer"])]
        records += sayable[: -(-most // len(ANSWERED))]
    rows, pairs, shown = list[dict[str, Any]](), list[Pair](), list[SoundExample]()
    for number, record in enumerate([records[0], *records]):  # the first one warms up
        texts, sound = list[str](), list[Tensor]()
        asked = talk.answers.clock()
        prepared = processor.prepare(question(parse_sample(record, heldout).turns), add_generation_prompt=True)
        batch, params = processor.pack([prepared], ragged=True), SamplingParams(max_new_tokens=MOST_TOKENS)
        answer = talk.ask(batch, params, asked=asked, on_text=texts.append)
        while talk.busy:
            sound.append(talk.step())
        if not number:
            continue
        text, pcm = "".join(texts).strip(), torch.cat([torch.zeros(0), *sound])
        rows.append(answer.times.as_json() | {"right": text == record["truth"]["answer"], "said": text})
        words = " ".join(spoken_words(text))
        heard = heard_in({"answer": pcm}, rate, listener) if words else {}
        pairs += [(heard["answer"], words)] if heard else []
        if sum(one.name.startswith(f"answer-{record['axis']}") for one in shown) < 1:
            original = sounds_of(record, heldout, rate)[-1]
            shown.append(
                SoundExample(f"answer-{record['axis']}", words, {"asked about": original, "answer": pcm}, heard)
            )
    found: dict[str, Any] = {"n": len(rows), "answered": round(mean(row["right"] for row in rows), 4)}
    found["sounded"] = sum(row["after_question"] is not None for row in rows)
    for name in ("after_question", "after_token", "longest_gap", "stalled", "real_time_factor"):
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = {"median": round(median(values), 4), "most": round(max(values), 4)} if values else {}
    if pairs:
        found["words"] = word_scores(pairs) | {"n": len(pairs)}
    return found | {"recogniser": listener.missing}, shown
