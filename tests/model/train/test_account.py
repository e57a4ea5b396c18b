"""The account of memory: against bytes that a backward is left, and against the count of the trainer's own step."""

from dataclasses import replace

import pytest
import torch

from afn_model.afnext import AFNext
from afn_model.config import AudioConfig, ModelConfig, SpeechConfig, TextConfig
from afn_model.train.account import Account, BatchShape, keeps_whole, stage_units, windows_of
from afn_model.train.activation_checkpoint import MODES, checkpoint_blocks
from afn_model.train.adapt import adapt
from afn_model.train.curriculum import Stage
from afn_model.train.fp8 import multiply_in_fp8
from afn_model.train.run_layout import RunLayout, for_stage, read_layout
from afn_model.train.speech_account import account_of
from afn_model.train.typical import longest
from bench import memory

SMALL = ModelConfig(
    audio=AudioConfig(n_mels=80, width=64, layers=3, heads=2, ffn=256),
    text=TextConfig(vocab_size=512, width=128, layers=3, heads=4, kv_heads=2, ffn=512, max_positions=8192),
    audio_token_id=509,
    audio_bos_token_id=None,
    audio_eos_token_id=None,
    stop_token_ids=(511,),
)
ALIKE = 0.05  # how well account and count must agree
ADAPTERS = {"trains": ("language_model",), "lora": {"rank": 8, "alpha": 16}}
ROWS = memory.read(memory.OUT)
CASES = {(case.stage.name, case.layout): case for case in memory.cases()}


def stage(trains=("all",), **more) -> Stage:
    return Stage("some", trains, {"x": 1.0}, context=2048, batch_tokens=2048, **more)


def saved(stage: Stage, mode: str, fp8: bool = False) -> int:
    """Bytes that a forward saves for its backward, every op on the path of its kernel, weights left out."""
    usual = torch.get_default_dtype()
    with memory.counting(1 << 12 if fp8 else memory.HOST):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = AFNext(SMALL).train()
        finally:
            torch.set_default_dtype(usual)
        adapt(model, stage, seed=0)
        if fp8:
            multiply_in_fp8(model.language_model)
        checkpoint_blocks(model, mode)
        here = model.prepare(memory.packed(SMALL, stage.context, stage.max_audio))
        weights, kept = {p.untyped_storage()._cdata for p in model.parameters()}, {}

        def pack(x):
            kept[x.untyped_storage()._cdata] = x.untyped_storage()  # held, so that no other has its address
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model.loss(here)
        return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


@pytest.mark.parametrize(
    ("some", "mode"),
    [
        *((stage(), mode) for mode in MODES),
        (stage(("adaptor", "language_model")), "none"),
        (stage(**ADAPTERS), "none"),
        (stage(**ADAPTERS), "full"),
    ],
)
def test_activations_are_what_a_backward_is_left(some, mode):
    account = Account(SMALL, some, RunLayout(dtype="bfloat16", recompute=mode), 1, longest(some))
    said = float((account.activations() - account.gathered(account.units.root)).max())
    assert said == pytest.approx(saved(some, mode), rel=ALIKE)


def test_products_in_fp8_keep_what_others_do_and_are_gathered_as_a_byte():
    layout = RunLayout(dtype="bfloat16", fp8=True, shard=4)
    for some in (stage(), stage(**ADAPTERS)):
        account = Account(SMALL, some, layout, 4, longest(some))
        said = float((account.activations() - account.gathered(account.units.root)).max())
        assert said == pytest.approx(saved(some, "none", fp8=True), rel=ALIKE)
    plain, coded = (Account(SMALL, stage(), replace(layout, fp8=one), 4, longest(stage())) for one in (False, True))
    layer, text = plain.units.layers[0], SMALL.text
    weights = text.width * (2 * 128 + 2 * 64 + 3 * text.ffn)
    assert layer.products == weights
    assert plain.gathered(layer) - coded.gathered(layer) == weights
    assert plain.gathered(plain.units.root) == coded.gathered(coded.units.root)
    frozen, sharded = stage(("adaptor",)), replace(layout, frozen="sharded")
    plain, coded = (Account(SMALL, frozen, replace(sharded, fp8=one), 4, longest(frozen)) for one in (False, True))
    assert plain.gathered(plain.units.layers[0]) - coded.gathered(coded.units.layers[0]) == weights


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in ROWS if key[1] != "128gpu" and "24K" not in key[0]], ids=" on ".join)
def test_the_account_is_the_count_of_the_trainers_own_step(key):
    """The same columns, from the formulas and from every storage of a step on fake tensors."""
    row, case = ROWS[key], CASES[key]
    layout = for_stage(read_layout(case.layout), case.stage)
    micro = longest(case.stage)
    if case.stage.method == "grpo":  # the count has one prompt, without others that fill the pass
        micro = replace(micro, lengths=micro.lengths[: 1 + micro.answers])
    config = SpeechConfig() if case.stage.method == "asr" else ModelConfig()
    account = account_of(config, case.stage, layout, row["ranks"], micro, reserve=1e9 * row["reserve"])
    found = {name: size / 1e9 for name, size in account.total().items()}
    assert found["total"] == pytest.approx(row["total"], rel=ALIKE)
    for name in ("states", "gradients", "activations"):
        assert found[name] == pytest.approx(row[name], rel=ALIKE, abs=0.4), name
    assert found["working"] == pytest.approx(row["working"], rel=0.2, abs=1.0)
    if "rollout" in row:
        assert found["rollout"] - account.cache() / 1e9 == pytest.approx(row["rollout"], rel=ALIKE)


def test_the_full_model_has_the_published_number_of_parameters():
    full = stage_units(ModelConfig(), stage(), RunLayout(dtype="bfloat16"), whole=True)
    positions = 1500 * 1280
    assert (full.trained + positions, full.frozen) == (8_267_215_360, 2 * positions)
    assert (len(full.layers), len(full.encoder), full.head) == (28, 4, 3584 * 151_672)
    assert full.copied == full.trained


def test_states_by_hand():
    """Weights, gradients and two moments of 4 bytes each, over the ranks that share them; frozen ones whole or cut."""
    layout, micro = RunLayout(dtype="bfloat16", shard=4), BatchShape((64,), (), 32)
    whole = Account(SMALL, stage(), layout, 8, micro)
    n = whole.units.trained
    assert whole.states()["trained weights"] == whole.total()["gradients"] == n
    assert whole.states()["moments"] == 2 * n
    eight = Account(SMALL, stage(optimiser="adamw8bit"), layout, 8, micro)
    assert eight.states()["moments"] == pytest.approx(n * 2 / 4, rel=0.03)
    few = stage(("adaptor",))
    held, cut = (Account(SMALL, few, replace(layout, frozen=kind), 8, micro).states() for kind in ("whole", "sharded"))
    assert held["frozen weights"] == 4 * cut["frozen weights"] > 0


def test_what_is_offloaded_by_hand():
    """On one GPU 2 bytes of a weight are left of 16, on several the weights and gradients that each has a share of."""
    some = stage(optimiser="adamw8bit")
    layout = RunLayout(dtype="bfloat16", offload_optimiser=True)
    one = Account(SMALL, some, layout, 1, longest(some))
    n = one.units.trained
    assert one.states()["trained weights"] == 2 * n
    assert one.states()["moments"] == 0
    assert one.total()["gradients"] == 4 * n
    assert one.gathered(one.units.root) == 0
    kept = {"float32 weights": 4 * n, "moments": 2.04 * n, "checkpoint": 6.04 * n}
    assert one.host() == pytest.approx(kept)
    sums = Account(SMALL, some, replace(layout, offload_gradients=True), 1, longest(some))
    assert sums.host() == pytest.approx(kept | {"gradients": 4 * n})
    assert sums.total()["gradients"] == 0
    assert sums.staging() == pytest.approx(min(2 * 2**29, 2 * 10.04 * n))
    four = Account(SMALL, some, replace(layout, offload_gradients=True), 4, longest(some))
    assert four.host() == pytest.approx({"moments": 2.04 * n / 4, "checkpoint": 6.04 * n / 4})
    assert four.states()["trained weights"] == four.total()["gradients"] == n
    adapters = stage(**ADAPTERS)
    assert set(Account(SMALL, adapters, layout, 1, longest(adapters)).host()) == {"moments", "checkpoint"}
    assert Account(SMALL, some, RunLayout(dtype="bfloat16"), 1, longest(some)).host() == {}


@pytest.mark.parametrize("mode", MODES)
def test_offloaded_inputs_are_what_a_forward_no_longer_leaves(mode):
    """What is on the host is what is gone from the GPU, but for the inputs of the last block."""
    stays, goes = (RunLayout(dtype="bfloat16", recompute=mode, offload_activations=x) for x in (False, True))
    before, after = (Account(SMALL, stage(), layout, 1, longest(stage())) for layout in (stays, goes))
    on_host = float(after.offloaded().max())
    last = {"full": 2, "selective": 1}.get(mode, 0) * float(after.input_of_mlp().max())
    last += (mode == "encoder") * 2 * float(after.frames.max()) * 2 * SMALL.audio.width
    left = float((before.activations() - after.activations()).max())
    assert left == (0 if mode == "none" else pytest.approx(on_host - last))
    assert (on_host == 0) == (mode == "none")
    assert not before.offloaded().any()


def test_a_reference_is_what_trains_once_more():
    grpo = Stage("some", ("adaptor", "language_model"), {"x": 1.0}, "grpo", context=2048, batch_prompts=8)
    layout = RunLayout(dtype="bfloat16", shard=2)
    account = Account(SMALL, grpo, layout, 2, longest(grpo))
    assert account.states()["reference"] == 2 * account.units.trained / 2
    assert Account(SMALL, replace(grpo, grpo={"kl": 0}), layout, 2, longest(grpo)).states()["reference"] == 0
    found = account.total()
    assert found["rollout"] > found["states"] + account.cache()
    adapters = replace(grpo, **ADAPTERS)
    assert Account(SMALL, adapters, layout, 2, longest(adapters)).states()["reference"] == 0


def test_the_peak_of_short_sequences_is_the_sum_of_the_gathered_gradients():
    """Embeddings, head and adaptor: in bfloat16, and in float32 with this rank's share of their sum."""
    layout = RunLayout(dtype="bfloat16", recompute="full")
    account = Account(ModelConfig(), stage(), layout, 8, BatchShape((64,), (), 8))
    found, root = account.total(), account.units.root.trained
    assert found["activations"] + found["working"] == pytest.approx(root * (2 + 4 + 4 / 8), rel=0.01)


def test_frozen_weights_are_whole_where_they_fit():
    few, layout = stage(("adaptor",)), RunLayout(dtype="bfloat16")
    frozen = stage_units(SMALL, few, layout, whole=True).frozen
    assert keeps_whole(SMALL, few, layout, 8, 4.0 * frozen)
    assert not keeps_whole(SMALL, few, layout, 8, 3.9 * frozen)
    assert keeps_whole(SMALL, few, layout, 1, 1.0)
    assert not keeps_whole(SMALL, few, replace(layout, frozen="sharded"), 8, 4.0 * frozen)


def test_a_sequence_that_ranks_share_takes_less_of_each():
    some, kept = stage(), []
    for ulysses, ring in ((1, 1), (2, 1), (2, 2)):
        layout = RunLayout(dtype="bfloat16", ulysses=ulysses, ring=ring)
        kept.append(float(Account(SMALL, some, layout, 4, longest(some)).activations().max()))
    assert kept[0] > 1.5 * kept[1] > 1.5 * kept[2]


def test_windows():
    assert windows_of(1600) == (1500, 1500, 200)
    assert windows_of(0) == ()
