"""Noise and rooms: measured on what comes out, and the same whoever draws them."""

import itertools
import json
import math

import numpy as np
import pytest
import soundfile
import torch

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.recording import Audio
from afn_model.data import augment
from afn_model.data.augment import Augmentation, AugmentedLoad, Augmenter, NoiseSettings, RoomSettings
from afn_model.data.index import Corpus, build
from afn_model.data.loader import DataConfig, Loader
from tests import tiny

RECORDS = 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(samples, level=0.1, seed=0):
    return level * torch.randn(samples, generator=seeded(seed))


def decibels(ratio):
    return 10 * math.log10(ratio)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of a second with pauses, and noises: tones of 0.3 s and of 3 s."""
    folder = tmp_path_factory.mktemp("augment")
    for name, lengths in (("c", [1.0] * RECORDS), ("n", [0.3, 3.0])):
        lines = []
        for i, seconds in enumerate(lengths):
            time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
            pcm = (
                noise(len(time), 0.05, i) * (time % 0.5 < 0.3) if name == "c" else 0.3 * torch.sin(600 * time * (i + 1))
            )
            soundfile.write(folder / f"{name}{i}.wav", pcm.numpy(), SAMPLE_RATE)
            said = [{"from": "human", "value": "<sound>\nWhat is said?"}, {"from": "gpt", "value": "A dog barks."}]
            lines.append({"id": str(i), "sound": f"{name}{i}.wav", "duration": seconds, "conversations": said})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        build(folder / f"{name}.jsonl")
    return folder


@pytest.mark.parametrize("source", ["white", "pink", "recordings"])
@pytest.mark.parametrize("snr", [-5.0, 20.0])
def test_the_ratio_is_what_was_asked_for(folder, source, snr):
    file = folder / "n.jsonl" if source == "recordings" else None
    settings = Augmentation(NoiseSettings(source, [snr, snr], 1.0), None, file)
    clean, changed = (
        AugmentedLoad(1.0, augmenter, 5)(
            Audio(noise(8000, 0.01)), strict=False, max_seconds=30, dtype=torch.int16
        ).double()
        for augmenter in (None, Augmenter(settings, settings.corpus()))
    )
    found = decibels(clean.square().sum() / (changed - clean).square().sum())
    assert found == pytest.approx(snr, abs=0.1)


def test_pink_noise_has_the_same_power_in_every_octave():
    power = torch.fft.rfft(augment.made_noise("pink", 1 << 17, seeded())).abs().double().square()
    octaves = [decibels(power[1 << k : 2 << k].sum()) for k in range(8, 16)]
    assert max(octaves) - min(octaves) < 1.0


@pytest.mark.parametrize(("t60", "direct"), [(0.1, 0.0), (0.3, 10.0), (0.6, 3.0)])
def test_a_room_decays_as_fast_as_was_asked_for(t60, direct):
    """Schroeder, 1965: the energy still to come falls along a line of -60 dB in T60; 5 % for what is random in it."""
    h = augment.room_response(t60, direct, seeded()).double()
    assert h.square().sum() == pytest.approx(1, abs=1e-5)
    assert int(h.abs().argmax()) == 0 or direct < 3
    assert decibels(h[0] ** 2 / h[1:].square().sum()) == pytest.approx(direct, abs=0.01)
    left = 10 * h[1:].square().flip(0).cumsum(0).flip(0).log10()
    left = left - left[0]
    fitted = (left <= -5) & (left >= -35)
    place = torch.arange(len(left)).double()[fitted] / SAMPLE_RATE
    slope, _ = np.polyfit(place.numpy(), left[fitted].numpy(), 1)
    assert -60 / slope == pytest.approx(t60, rel=0.05)


@pytest.mark.parametrize("samples", [400, 20_000, 100_000])
def test_a_room_moves_nothing_and_is_a_convolution(samples):
    pcm, response = noise(samples), augment.room_response(0.2, 3.0, seeded(1))
    found = augment.convolved(pcm, response)
    assert len(found) == samples
    for place in (0, 1, 399, samples // 2, samples - 1):
        reach = min(place + 1, len(response))
        expected = (response[:reach].double() * pcm[place - reach + 1 : place + 1].flip(0).double()).sum()
        assert float(found[place]) == pytest.approx(float(expected), abs=1e-6)


def test_silence_stays_silent_and_nothing_clips(folder):
    settings = Augmentation(NoiseSettings("white", [0, 0], 1.0), RoomSettings([0.2, 0.2], [0, 0], 1.0))
    hearing = {"strict": False, "max_seconds": 30.0, "dtype": torch.int16}
    augmenter = Augmenter(settings, None)
    silent = AugmentedLoad(0.9, augmenter, 3)(Audio(torch.zeros(5000)), **hearing)
    assert (len(silent), bool(silent.any())) == (5556, False)
    loud = torch.sin(torch.arange(20_000) / 5)
    found = AugmentedLoad(1.0, augmenter, 3)(Audio(loud), **hearing).double()
    floating = AugmentedLoad(1.0, augmenter, 3)(Audio(loud), **{**hearing, "dtype": torch.float32}).double()
    assert found.abs().max() == 32767
    assert floating.abs().max() > 1.2
    assert (found / 32768 - floating * (found.abs().max() / 32768 / floating.abs().max())).abs().max() < 2e-5


def steps(folder, count=3, **options):
    """Samples of the first steps, four of them: one and a half epochs."""
    settings = Augmentation(NoiseSettings("n", share=0.7), RoomSettings(share=0.5), folder / "n.jsonl")
    config = DataConfig(
        {"c": folder / "c.jsonl"}, {"c": 1}, 0, 192, 2, 30.0, 64, speeds={"c": 1.1}, augment=settings, bad_share=0.0
    )
    found = []
    for step in itertools.islice(Loader(config, tiny.processor(), **options), count):
        heard = [(one.id, micro.batch.pcm) for micro in step.micro for one in micro.samples]
        found.append((heard, step.position))
    return found


def same(one, other):
    return [name for name, _ in one] == [name for name, _ in other] and all(
        torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True)
    )


def test_workers_and_a_restart_draw_the_same_and_another_visit_does_not(folder):
    whole = steps(folder, 6)
    assert all(same(a, b) for (a, _), (b, _) in zip(whole, steps(folder, 6, workers=2), strict=True))
    parts = [steps(folder, 1, dp_rank=rank, dp_size=2)[0][0] for rank in (0, 1)]
    assert same(whole[0][0], parts[0] + parts[1])
    again = steps(folder, 2, position=whole[3][1])
    assert all(same(a, b) for (a, _), (b, _) in zip(whole[4:], again, strict=True))
    visits = {}
    for heard, _ in whole:
        for name, pcm in heard:
            visits.setdefault(name, []).append(pcm)
    assert [len(pcms) for pcms in visits.values()] == [2] * RECORDS
    assert sum(not torch.equal(first, second) for first, second in visits.values()) >= RECORDS - 2


def test_a_noise_that_cannot_be_used_is_named(folder, tmp_path):
    for name in ("n.jsonl", "n0.wav"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    build(tmp_path / "n.jsonl")
    augmenter = Augmenter(Augmentation(NoiseSettings("n", share=1.0)), Corpus(tmp_path / "n.jsonl"))
    with pytest.raises(ValueError, match=r"^noise, record 1: [^\n]*n1.wav[^\n]*$"):
        list(map(lambda seed: augmenter(noise(4000), seed), range(0, 40, 2)))
    lines = (folder / "n.jsonl").read_text().replace('"duration": 0.3, ', "")
    (tmp_path / "n.jsonl").write_text(lines)
    build(tmp_path / "n.jsonl")
    with pytest.raises(ValueError, match="1 recordings of noise have no duration"):
        Augmentation(NoiseSettings("n"), None, tmp_path / "n.jsonl").corpus()


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (NoiseSettings, {"data": "white", "snr": [20, 5]}),
        (NoiseSettings, {"data": "white", "share": 1.5}),
        (RoomSettings, {"t60": [0.0, 0.5]}),
        (RoomSettings, {"direct": 3}),
    ],
)
def test_settings_out_of_range(kind, wrong):
    with pytest.raises(ValueError, match=f"^{[*wrong][-1]} is .* expected$"):
        kind(**wrong)
