"""The same numbers and the same tokens as the released integration in transformers."""

import dataclasses

import pytest
import torch

import afn_kernels as ak
from afn_model import AFNext
from afn_model.audio.frames import HOP, WINDOW
from afn_model.network.encoder import Windows
from afn_model.prompt.batch import Batch
from afn_model.weights.checkpoint import LAYOUTS, find_layout
from tests.budget import assert_same_but_rounding
from tests.model.reference import STOP, prompts, tiny_reference
from tests.orders import in_orders

WINDOWS = {
    "one full window": [[3000]],
    "one short window": [[777]],
    "three windows, the last short": [[3000, 3000, 123]],
    "unequal batch": [[3000, 41], [250], [3], [3000, 1501]],
    "edge lengths": [[2999], [2998], [4], [5], [6], [7]],
}
FAMILIES = ("musicflamingo", "audioflamingo3")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(reference, ours) by family and seed, ours loaded from what the reference saved."""
    made = {}

    def make(family: str, seed: int, width: int = 160):
        if (family, seed, width) not in made:
            reference = tiny_reference(family, seed, width=width)
            folder = tmp_path_factory.mktemp(f"{family}{seed}")
            reference.save_pretrained(folder)
            made[family, seed, width] = reference, AFNext.from_pretrained(folder)
        return made[family, seed, width]

    return make


def their_logits(reference, p):
    inputs = {"input_features": p.mel, "input_features_mask": p.mel_mask, "attention_mask": p.attention_mask}
    # Left alone it counts the padding, which turns queries and keys alike, and rounds their angles otherwise.
    positions = (p.attention_mask.cumsum(1) - 1).clamp(min=0)
    return reference(input_ids=p.input_ids, position_ids=positions, **inputs).logits


@torch.inference_mode()
@pytest.mark.parametrize(
    ("family", "case"), [("audioflamingo3", "three windows, the last short"), *(("musicflamingo", x) for x in WINDOWS)]
)
def test_logits(pair, family, case):
    reference, ours = pair(family, 0)
    p = prompts(WINDOWS[case], 1)
    found = ours.logits(p.input_ids, p.mel, p.mel_lengths, attention_mask=p.attention_mask)
    kept = p.attention_mask.bool()
    assert_same_but_rounding(found[kept], in_orders(lambda: their_logits(reference, p)[kept], 4))
    assert not found[~kept].any()


@torch.inference_mode()
@pytest.mark.parametrize("width", [128, 132])
def test_logits_where_the_rotary_width_is_odd(pair, width):
    # 0.2 of 128 is 25: the released integration then has 13 frequencies per axis.
    reference, ours = pair("musicflamingo", 0, width)
    p = prompts([[3000, 500]], 3)
    found = ours.logits(p.input_ids, p.mel, p.mel_lengths)
    assert_same_but_rounding(found, in_orders(lambda: their_logits(reference, p), 4))


@torch.inference_mode()
def test_rote_matters(pair, tmp_path):
    _, ours = pair("musicflamingo", 0)
    ours.save_pretrained(tmp_path)
    p = prompts([[3000, 3000]], 0)
    with_rote = ours.logits(p.input_ids, p.mel, p.mel_lengths)
    without = AFNext.from_pretrained(tmp_path, rote="none").logits(p.input_ids, p.mel, p.mel_lengths)
    assert (with_rote - without).abs().max() > 1e-2 * with_rote.abs().max()


@torch.inference_mode()
def test_the_papers_reading_without_gaps_is_rope(pair, tmp_path):
    _, af3 = pair("audioflamingo3", 0)
    af3.save_pretrained(tmp_path)
    p = prompts([[3000, 777], [250]], 0)
    arguments = (p.input_ids, p.mel, p.mel_lengths)
    rope = af3.logits(*arguments, attention_mask=p.attention_mask)
    paper = AFNext.from_pretrained(tmp_path, rote="paper")
    assert torch.equal(paper.logits(*arguments, attention_mask=p.attention_mask), rope)
    slower = dataclasses.replace(paper.config.rote, text_step=0.5)
    paper.config = dataclasses.replace(paper.config, rote=slower)
    assert not torch.allclose(paper.logits(*arguments, attention_mask=p.attention_mask), rope, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_64_greedy_tokens(pair, family, seed, packed):
    reference, ours = pair(family, seed)
    windows = [[3000, 3000, 123], [250], [1200]]
    p = prompts(windows, seed)
    expected = reference.generate(
        input_ids=p.input_ids,
        input_features=p.mel,
        input_features_mask=p.mel_mask,
        attention_mask=p.attention_mask,
        max_new_tokens=64,
        do_sample=False,
        repetition_penalty=1.2,
        eos_token_id=STOP,
        pad_token_id=0,
    )[:, p.input_ids.shape[1] :]
    answers = ours.generate(
        packed(p, [len(w) for w in windows]), max_new_tokens=64, repetition_penalty=1.2, stop_token_ids=(STOP,)
    )
    for row, answer in zip(expected.tolist(), answers, strict=True):
        row = row[: row.index(STOP)] if STOP in row else row
        assert answer == row
    assert max(map(len, answers)) == 64, "no answer is long enough to say anything"


@pytest.fixture
def packed(monkeypatch):
    """Prompts as a packed batch whose log-mel is already known."""

    def make(p, windows_per_audio):
        kept = p.attention_mask.bool()
        cu_seqlens = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0)).int()
        samples = torch.as_tensor(p.mel_lengths) * HOP
        pcm = torch.zeros(len(p.mel), WINDOW, dtype=torch.int16)
        pcm[:, 0] = torch.arange(len(p.mel))
        batch = Batch(p.input_ids[kept], cu_seqlens, pcm, samples, torch.tensor(windows_per_audio))
        monkeypatch.setattr(ak, "log_mel", lambda pcm, n_mels: p.mel[pcm[:, 0].long(), :, : pcm.shape[1] // HOP])
        return batch

    return make


@torch.inference_mode()
@pytest.mark.parametrize("layout", ["transformers", "hub"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_loads_what_we_save(pair, tmp_path, family, layout):
    reference, ours = pair(family, 0)
    ours.save_pretrained(tmp_path, layout=layout)
    assert find_layout(tmp_path) == layout
    again, info = type(reference).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    theirs = reference.state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    p = prompts([[3000, 99]], 5)
    arguments = {"input_ids": p.input_ids, "input_features": p.mel, "input_features_mask": p.mel_mask}
    assert torch.equal(again(**arguments).logits, reference(**arguments).logits)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back_bit_identical(pair, tmp_path, layout):
    _, ours = pair("musicflamingo", 1)
    ours.save_pretrained(tmp_path, layout=layout)
    assert find_layout(tmp_path) == layout
    again = AFNext.from_pretrained(tmp_path)
    assert again.config == ours.config
    for (name, a), (_, b) in zip(ours.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@torch.inference_mode()
def test_only_the_frames_a_clip_needs_are_computed(pair):
    # The same features from a mel that stops where the stem's last boundary frame does.
    _, ours = pair("musicflamingo", 0)
    p = prompts([[777], [1001], [2]], 0)
    windows = Windows.of([777, 1001, 2], torch.device("cpu"), torch.float32)
    assert windows.mel_frames == 1003
    whole, tokens = ours.encode(p.mel, [777, 1001, 2])
    short, _ = ours.encode(p.mel[..., :1003], [777, 1001, 2])
    assert tokens == [194, 250, 0]
    assert torch.equal(whole, short)
    with pytest.raises(ValueError, match="1002 frames per window, the longest window needs 1003"):
        ours.encode(p.mel[..., :1002], [777, 1001, 2])


@torch.inference_mode()
def test_windows_of_a_batch_do_not_see_each_other(pair):
    _, ours = pair("musicflamingo", 0)
    p = prompts([[3000, 777], [1234]], 0)
    together = ours.project(*ours.encode(p.mel, [3000, 777, 1234]), [2, 1])

    def apart():
        first = ours.project(*ours.encode(p.mel[:2], [3000, 777]), [2])
        return torch.cat((first, ours.project(*ours.encode(p.mel[2:], [1234]), [1])))

    assert_same_but_rounding(together, in_orders(apart, 4))
