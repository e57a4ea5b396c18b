"""What the encoder is told of every frame."""

import pytest
import torch

pytest.importorskip("espeakng_loader", reason="the world speaks with espeakng-loader")

from afn_model.bootstrap.speech_scores import read
from afn_model.bootstrap.speech_start import frame_labels, start_encoder
from afn_model.bootstrap.tiny_speech import untrained
from afn_model.world.build import write_world
from afn_model.world.sounds import SOUNDS


def test_a_frame_is_what_is_heard_in_its_middle():
    events = [{"label": "two", "start": 0.05, "end": 0.09}, {"label": "one", "start": 0.13, "end": 0.17}]
    assert frame_labels(events, 6, {"one": 0, "two": 1}).tolist() == [0, 2, 0, 1, 0, 0]


def test_the_encoder_learns_and_the_decoder_is_left_alone(tmp_path):
    write_world(tmp_path, train={}, heldout={"captions": 8}, seed=0)
    model, processor = untrained(0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    losses = []
    records, labels = read(tmp_path / "heldout/captions.jsonl"), tuple(SOUNDS)
    options = {"steps": 6, "seed": 0, "on_step": lambda step, loss: losses.append(loss)}
    right = start_encoder(model, processor, records, tmp_path / "heldout", labels, **options)
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert 0 <= right <= 1
    for name, weight in model.state_dict().items():
        changed = not torch.equal(weight, before[name])
        assert changed == (name.startswith("encoder.") and "embed_positions" not in name), name
