"""The report on a small voice: what codec and talker reach, what it sounds like, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from afn_model.audio.encode import wav
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.resample import resample
from afn_model.bootstrap.speech_report import paragraph, percent, plain, table
from afn_model.files import atomic_path
from afn_model.plot_style import plotting, save

if TYPE_CHECKING:
    from afn_model.bootstrap.talk_scores import SoundExample

AXES = {"known": "known speakers", "new": "new speakers", "spoken": "the two talkers"}
FFT, HOP, FLOOR_DB = 512, 128, -80.0


def markdown(results: Mapping) -> str:
    """The scores as text, from what ``tiny_talk.run`` finds."""
    stages: Mapping[str, Mapping] = results["stages"]
    out = ["# A small voice from nothing", "", paragraph(results), ""]
    for name, found in stages.items():
        out += _codec(name, found) if found["method"] == "codec" else _talker(name, found)
    out += ["What it sounds like: `sounds.md`, beside this report in its run folder."]
    return "\n".join(out) + "\n"


def sounding(results: Mapping) -> str:
    """Its examples as text: what was heard, the sounds and their spectrograms."""
    out = ["# What it sounds like", ""]
    for one in results["shown"]:
        heard = "; ".join(f"{sound}: {plain(text) or 'nothing'}" for sound, text in one["heard"].items())
        out += [f"**{plain(one['words']) or 'nothing to hear'}**" + (f" (heard: {heard})" if heard else ""), ""]
        out += [" ".join(f"[{sound}](sounds/{file})" for sound, file in one["files"].items())]
        out += ["", f"![spectrograms](sounds/{one['picture']})", ""]
    return "\n".join(out).rstrip() + "\n"


def _codec(name: str, found: Mapping) -> list[str]:
    out = [f"## The codec, after stage {name}", "", f"{found['bits_per_second']:,.0f} bits a second.", ""]
    heads = ["held-out phrases by", "mel distance, dB"]
    heads += ["words right in the originals", "through the codec", "WER of the originals", "through the codec", "n"]
    rows = []
    for axis, who in AXES.items():
        own = found[axis]
        words = [_words(own, of, key) for key in ("right", "wer") for of in ("original", "codec")]
        rows.append([who, f"{own['mel_distance']:.2f}", *words, own["n"]])
    return out + table(heads, rows) + _recogniser(found)


def _talker(name: str, found: Mapping) -> list[str]:
    out = [f"## The talker, after stage {name}", "", "Held-out phrases, each behind a prompt of its speaker.", ""]
    rows = []
    for voice in ("man", "woman", "all"):
        if own := found.get(voice):
            words = [_words(own, of, key) for key in ("right", "wer") for of in ("original", "said")]
            rows.append([voice, *words, percent(own["ended"]), f"{own['length_ratio']:.2f}"])
            rows[-1] += [f"{own['similarity']:.2f}", own["n"]]
    heads = ["voice", "words right in the originals", "said", "WER of the originals", "said", "ended by itself"]
    heads += ["length ÷ original's", "similarity", "n"]
    out += table(heads, rows) + _recogniser(found)
    pitches = ", ".join(f"{voice} {pitch:.0f} Hz" for voice, pitch in found["pitch"].items())
    out += [
        f"The wrong speaker, by what is nearer to the other voice: fundamental frequency ({pitches}), spectrum.",
        "",
    ]
    rows = []
    for voice in ("man", "woman", "all"):
        if own := found.get(voice):
            kinds = [
                name + wrong for wrong in ("wrong_speaker", "wrong_spectrum") for name in ("", "codec_", "original_")
            ]
            rows.append([voice, *(percent(own[kind]) for kind in kinds)])
    heads = ["voice", "frequency: said", "originals through the codec", "originals", "spectrum: said"]
    out += table([*heads, "originals through the codec", "originals"], rows)
    rate = found["speed"]
    out += [
        f"One text at a time, {rate['n']} of them: first sound {_ms(rate['first_audio'])} after the text, "
        f"{_ms(rate['gap'])} between chunks of {_ms(rate['chunk'])} (longest {_ms(rate['longest_gap'])}), "
        f"real-time factor {rate['real_time_factor']:.2f} (medians).",
        "",
    ]
    return out + (_aloud(found["aloud"]) if "aloud" in found else ["No model of afn demo answered with it.", ""])


def _aloud(found: Mapping) -> list[str]:
    out = ["## Voice to voice", "", f"The model of afn demo, asked about {found['n']} held-out recordings.", ""]
    names = {
        "after_question": "from the end of the question to the first sound",
        "after_token": "from the first token of text to the first sound",
        "longest_gap": "longest gap between chunks of an answer",
        "stalled": "silence that a listener hears who plays it at once",
    }
    rows = [[what, *(_ms(found[name][of]) for of in ("median", "most"))] for name, what in names.items() if found[name]]
    out += table(["", "median", "most"], rows)
    out += [f"{percent(found['answered'])} of the texts were right; {found['sounded']} of them sounded."]
    if "words" in found:
        words = found["words"]
        out[-1] += f" Of the words of {words['n']} texts {percent(words['right'])} were heard (WER "
        out[-1] += f"{percent(words['wer'])})."
    return [*out, "", *_recogniser(found)]


def _words(found: Mapping, of: str, key: str) -> str:
    return percent(found.get(of, {}).get(key)) or "not heard"


def _recogniser(found: Mapping) -> list[str]:
    if found["recogniser"]:
        return [f"No words were heard: {found['recogniser']}.", ""]
    return []


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def keep(shown: Sequence[SoundExample], folder: Path, rate: int) -> list[dict[str, Any]]:
    """Writes sounds as wav files of 16 kHz and their spectrograms; what the report says of each."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for one in shown:
        files = {}
        for sound, pcm in one.sounds.items():
            files[sound] = f"{one.name}-{sound.replace(' ', '-')}.wav"
            pcm = torch.cat(list(resample([pcm.detach().float().cpu()], rate, SAMPLE_RATE)))
            with atomic_path(folder / files[sound]) as temporary:
                temporary.write_bytes(wav((pcm.clamp(-1, 1) * 32767).round().to(torch.int16)))
        spectrograms(folder / f"{one.name}.png", one.sounds, rate, one.words)
        found.append({"words": one.words, "heard": one.heard, "files": files, "picture": f"{one.name}.png"})
    return found


def spectrograms(path: Path, sounds: Mapping[str, Tensor], rate: int, title: str) -> None:
    """Draws the log-magnitude spectrogram of each sound, below one another and on one scale of time, as a PNG."""
    longest = max(len(pcm) for pcm in sounds.values()) / rate
    with plotting() as plt:
        figure, several = plt.subplots(
            len(sounds), figsize=(7, 1.7 * len(sounds) + 0.4), sharex=True, squeeze=False, layout="tight"
        )
        for axes, (name, pcm) in zip(several[:, 0], sounds.items(), strict=True):
            level = decibels(pcm)
            axes.imshow(
                level.T,
                origin="lower",
                aspect="auto",
                extent=(0, level.shape[0] * HOP / rate, 0, rate / 2000),
                vmin=FLOOR_DB,
                vmax=0,
                cmap="cividis",
                interpolation="nearest",
            )
            axes.set(ylabel=f"{name}\nkHz", xlim=(0, max(longest, HOP / rate)))
        several[0, 0].set_title(title or "no words")
        several[-1, 0].set_xlabel("seconds")
        save(figure, path)


def decibels(pcm: Tensor) -> Tensor:
    """[frames, FFT/2+1] magnitudes of samples [n], in dB below the loudest one, from ``FLOOR_DB`` on."""
    padded = torch.nn.functional.pad(pcm.detach().float().cpu(), (0, FFT))
    size = torch.fft.rfft(padded.unfold(0, FFT, HOP) * torch.hann_window(FFT)).abs()
    return (20 * (size / size.max().clamp(min=1e-9)).clamp(min=1e-9).log10()).clamp(min=FLOOR_DB)
