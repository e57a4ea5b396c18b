"""The encoder's cost follows the audio, not the padding; presets have the released sizes."""

import time

import pytest
import torch

from afn_model import AFNext, preset
from afn_model.network.encoder import Windows


@torch.inference_mode()
def test_a_3_s_clip_costs_at_most_a_fifth_of_a_30_s_clip():
    torch.manual_seed(0)
    encoder = AFNext(preset("small")).encoder.eval()
    cost = {}
    for seconds, times_run in ((3, 4), (30, 2)):
        windows = Windows.of([100 * seconds], torch.device("cpu"), torch.float32)
        mel = torch.randn(1, 128, max(windows.mel_frames, 100 * seconds))
        times = []
        for _ in range(times_run):
            began = time.process_time()
            encoder(mel, windows)
            times.append(time.process_time() - began)
        cost[seconds] = min(times)
    assert cost[3] <= cost[30] / 5, cost


@pytest.mark.parametrize(("name", "parameters"), [("af-next", 8_267_215_360), ("af3", 8_267_215_360)])
def test_presets_have_the_released_size(name, parameters):
    with torch.device("meta"):
        model = AFNext(preset(name))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.encoder.parameters()) == 636_968_960


def test_unknown_preset():
    with pytest.raises(ValueError, match="no preset 'huge'; there are tiny, small, af-next, af3"):
        preset("huge")


@pytest.mark.parametrize("length", [0, 3001, -5])
def test_window_lengths_out_of_range(length):
    with pytest.raises(ValueError, match=f"window 1 has {length} mel frames"):
        Windows.of([100, length], torch.device("cpu"), torch.float32)
