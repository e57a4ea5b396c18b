"""Front ends of audio models on one core: ``ak.log_mel`` against transformers, torchaudio and plain PyTorch.

    python -m bench.front_ends [--out results.jsonl] [--rounds 5]

Times are milliseconds of processor time for ten clips of 30 s of synthesised speech, in turns, the best of the rounds:
on a machine with other work, the clock on the wall favours whoever is done before its slice of time. transformers is
the public call of the model's own feature extractor; torchaudio is its transform or its Kaldi fbank with what else the
front end asks for; "PyTorch" is the reference, "products" the same with the transform as a matrix product. Errors are
the largest and the mean distance of a feature from the reference in float64. Beside the file that --out names is a
table with the same name in Markdown.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torchaudio
import transformers
from torch import Tensor

import afn_kernels as ak
from afn_kernels.log_mel import reference, tables
from afn_model.host import version
from afn_model.world.espeak import Espeak
from bench.measure import main

RATE, CLIPS, SAMPLES = 16_000, 10, 480_000
SENTENCES = (
    "A kettle whistles in the kitchen while rain taps on the window.",
    "Seven trains left the station before noon, and only two came back.",
    "She asked whether anyone had heard the bell, and nobody answered.",
)
Call = Callable[[Tensor], Tensor]


def speech() -> Tensor:
    """[10, 480000] float32: ten speakers, sentence after sentence."""
    rows = torch.zeros(CLIPS, SAMPLES)
    with Espeak() as synthesiser:
        for i, row in enumerate(rows):
            variant = ("", "m3", "f2", "m7", "f4")[i % 5]
            said = [synthesiser.say(text, variant=variant, pitch=30 + 5 * i) for text in SENTENCES]
            pause = torch.zeros(RATE // 3)
            once = torch.cat([part for text in said for part in (text, pause)])
            row.copy_(once.repeat(-(-SAMPLES // len(once)))[:SAMPLES])
    return rows


def ours(config: ak.MelConfig, impl: str) -> Call:
    return lambda pcm: ak.log_mel(pcm, config=config, impl=impl)


def products(config: ak.MelConfig) -> Call:
    """The reference with its transform as a product by cosines and sines."""
    n, k = torch.arange(config.window_length), torch.arange(config.n_fft // 2 + 1)
    angle = 2 * torch.pi * (torch.outer(n, k) % config.n_fft).double() / config.n_fft
    window = tables.window(config)[:, None]
    matrix = torch.cat((angle.cos() * window, angle.sin() * window), 1).float()
    filters = tables.filters(config).float().T

    def run(pcm: Tensor) -> Tensor:
        pad = (config.before, config.n_fft)
        x = torch.nn.functional.pad(pcm, pad if config.padding else (0, 0))
        frames = x.unfold(1, config.window_length, config.hop_length)[:, : config.frames(SAMPLES)]
        re, im = (frames @ matrix).split(len(k), 2)
        return (filters @ (re.square() + im.square()).transpose(1, 2)).clamp(min=1e-10).log()

    return run


def extractor(name: str, found: str, **options) -> Call:
    extract = getattr(transformers, name)(**options.pop("settings", {}))

    def run(pcm: Tensor) -> Tensor:
        given = pcm if name.startswith("Granite") else [row.numpy() for row in pcm]
        return torch.as_tensor(extract(given, **options)[found])

    return run


def kaldi(**options) -> Call:
    """torchaudio's fbank, which takes a clip at a time."""
    options = {"num_mel_bins": 80, "sample_frequency": RATE, "dither": 0.0, **options}

    def run(pcm: Tensor) -> Tensor:
        return torch.stack([torchaudio.compliance.kaldi.fbank(row[None] * 32768, **options) for row in pcm])

    return run


def normalised(call: Call) -> Call:
    def run(pcm: Tensor) -> Tensor:
        y = call(pcm)
        return (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True) + 1e-7).sqrt()

    return run


def floored(call: Call) -> Call:
    """Logarithms of energies of at least 1."""
    return lambda pcm: call(pcm).clamp(min=0)


def spectrogram(config: ak.MelConfig, log: Call) -> Call:
    settings = {"hann": torch.hann_window, "hamming": torch.hamming_window}
    transform = torchaudio.transforms.MelSpectrogram(
        config.sample_rate,
        n_fft=config.n_fft,
        win_length=config.win_length,
        hop_length=config.hop_length,
        n_mels=config.n_mels,
        window_fn=settings[config.window],
        wkwargs={"periodic": config.periodic},
        norm=config.mel_norm,
        mel_scale=config.mel_scale,
        pad_mode="constant" if config.padding == "zeros" else "reflect",
    )
    return lambda pcm: log(transform(pcm))


def whispers_log(x: Tensor) -> Tensor:
    y = x.clamp(min=1e-10).log10()
    return (torch.maximum(y, y.amax((1, 2), keepdim=True) - 8) + 4) / 4


def nemos_log(x: Tensor) -> Tensor:
    y = (x + 2.0**-24).log()[:, :, :-1]
    return (y - y.mean(2, keepdim=True)) / (y.std(2, keepdim=True) + 1e-5)


def emphasised(call: Call) -> Call:
    return lambda pcm: call(torch.cat((pcm[:, :1], pcm[:, 1:] - 0.97 * pcm[:, :-1]), 1))


MODEL = {"sampling_rate": RATE, "return_tensors": "pt"}
WHISPER = ak.MelConfig.whisper()
AT_22_KHZ = ak.MelConfig(sample_rate=22_050, n_fft=1024, hop_length=256, n_mels=80)
FIVE_TWELVE = ak.MelConfig(n_fft=512, n_mels=80)
FRONT_ENDS: dict[str, tuple[ak.MelConfig, dict[str, Call]]] = {
    "Whisper, 128 mels": (
        WHISPER,
        {
            "transformers": extractor(
                "WhisperFeatureExtractor", "input_features", settings={"feature_size": 128}, **MODEL
            ),
            "torchaudio": spectrogram(WHISPER, lambda x: whispers_log(x[:, :, :-1])),
        },
    ),
    "NeMo (Parakeet, Canary), 80 mels": (
        ak.MelConfig.nemo(),
        {
            "transformers": extractor("ParakeetFeatureExtractor", "input_features", **MODEL),
            "torchaudio": emphasised(spectrogram(ak.MelConfig.nemo(), nemos_log)),
        },
    ),
    "SeamlessM4T, Wav2Vec2-BERT": (
        ak.MelConfig.seamless_m4t(),
        {
            "transformers": extractor("SeamlessM4TFeatureExtractor", "input_features", **MODEL),
            "torchaudio": normalised(kaldi()),
        },
    ),
    "Kaldi fbank, 80 mels": (ak.MelConfig.kaldi(), {"torchaudio": kaldi()}),
    "Phi-4-multimodal": (
        ak.MelConfig.phi4_multimodal(),
        {
            "transformers": extractor("Phi4MultimodalFeatureExtractor", "audio_input_features", **MODEL),
            "torchaudio": floored(kaldi(window_type="hamming", remove_dc_offset=False, high_freq=7690.0, low_freq=0.0)),
        },
    ),
    "Granite Speech": (
        ak.MelConfig.granite_speech(),
        {"transformers": extractor("GraniteSpeechFeatureExtractor", "input_features")},
    ),
    "Gemma 3n": (
        ak.MelConfig.gemma3n(),
        {"transformers": extractor("Gemma3nAudioFeatureExtractor", "input_features", return_tensors="pt")},
    ),
    "512 points every 160": (
        FIVE_TWELVE,
        {
            "torchaudio": spectrogram(FIVE_TWELVE, lambda x: whispers_log(x[:, :, :-1])),
            "products": products(FIVE_TWELVE),
        },
    ),
    "1024 points every 256, 22,050 Hz": (
        AT_22_KHZ,
        {"torchaudio": spectrogram(AT_22_KHZ, lambda x: whispers_log(x[:, :, :-1])), "products": products(AT_22_KHZ)},
    ),
}


def milliseconds(calls: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Least processor time of each call over the rounds, one call of each per round, after one of each to warm up."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            best[name] = min(best[name], 1e3 * (time.process_time() - start))
    return {name: round(value, 3) for name, value in best.items()}


def errors(config: ak.MelConfig, found: Tensor, exact: Tensor) -> list[float]:
    """Largest and mean distance of a feature from float64, over the frames that both have."""
    found = found if found.shape[1] == config.n_mels else found.reshape(len(found), -1, config.n_mels).transpose(1, 2)
    frames = min(found.shape[2], config.valid_frames(SAMPLES))
    distance = (found[:, :, :frames].double() - exact[:, :, :frames]).abs()
    return [float(f"{x:.2e}") for x in (distance.max(), distance.mean())]


def measure(rounds: int, device: str = "cpu") -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    from afn_kernels import _cpu

    torch.set_num_threads(1)
    pcm, rows = speech(), {}
    for name, (config, peers) in FRONT_ENDS.items():
        calls = {"ours": ours(config, "cpu"), "PyTorch": ours(config, "reference"), **peers}
        times = milliseconds({who: lambda call=call: call(pcm) for who, call in calls.items()}, rounds)
        exact = reference.log_mel(pcm.double(), config=config, out_dtype=torch.float64)
        lost = {who: errors(config, call(pcm), exact) for who, call in calls.items() if who != "products"}
        rows[name] = {"milliseconds": times, "error": lost}
        for who, value in times.items():
            print(f"{name:<34} {who:<13} {value:8.1f} ms {value / times['ours']:6.1f} x  {lost.get(who, '')}")
    record = {"benchmark": "front_ends_5_min", "simd": _cpu.simd_level(), "front_ends": rows}
    return {**record, "transformers": version("transformers"), "torchaudio": version("torchaudio")}


def table(record: dict) -> str:
    lines = [
        "# Front ends of audio models, one core",
        "",
        f"Processor time for ten clips of 30 s of synthesised speech: {record['simd']}, one thread, "
        f"{record['date'][:10]}, transformers {record['transformers']}, torchaudio {record['torchaudio']}. "
        "`bench/front_ends.py` says what is measured.",
        "",
        "| front end | implementation | ms | ours is faster by | largest error | mean error |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in record["front_ends"].items():
        times = row["milliseconds"]
        for who, value in times.items():
            error = " | ".join(f"{x:.1e}" for x in row["error"].get(who, [])) or " | "
            lines.append(f"| {name} | {who} | {value:.1f} | {value / times['ours']:.1f} | {error} |")
    lines += [
        "",
        "Errors are distances of features from float64. Where a front end's logarithm nearly touches 0 energy they",
    ]
    lines += ["are large for everyone in float32; SeamlessM4T, Phi-4 and Gemma 3n compute their transform in float64."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(__doc__, measure, rounds=5, table=table)
