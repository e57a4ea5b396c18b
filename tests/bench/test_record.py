"""What has a time and what has none: ours, one's own op and peers are held to the same budget."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from bench import report
from bench.ops import Workload
from bench.ops.rotary import torchs
from bench.record import PASSES, label, measured
from bench.run import should_have_run
from bench.shapes import asked
from tests.bench.test_run import BENCH, TINY, fake


def right(x, weight):
    return F.rms_norm(x, x.shape[-1:], weight, 1e-6)


def wrong(x, weight):
    return 1.05 * right(x, weight)


def wrong_backward(x, weight):
    return right(x, weight.detach()) + 0 * weight


def without_backward(x, weight):
    return right(x.detach(), weight.detach())


def with_another_argument(x, weight, axis):
    return right(x, weight)


OWN = (right, wrong, wrong_backward, without_backward, with_another_argument)


def by_name(work: Workload, which: str, only=None) -> dict[str, dict]:
    return {x["variant"]: x for x in measured(work, which, BENCH, only=only)}


def test_ones_own_op_is_held_to_the_budget_forward_and_backward():
    work = replace(TINY, also={fn.__name__: fn for fn in OWN})
    forward, both = by_name(work, "forward"), by_name(work, "forward+backward")
    assert forward["right"]["median_us"] > 0
    assert both["right"]["median_us"] > 0
    assert {forward[fn.__name__]["role"] for fn in OWN} == {"also"}
    assert forward["right"]["ratio_to_best_peer"] > 0
    for found in (forward["wrong"], both["wrong"], both["wrong_backward"]):
        assert found["median_us"] is None
        assert "exceeds the budget" in found["absent"]
        assert should_have_run(found)
    assert forward["wrong_backward"]["median_us"] > 0
    assert forward["without_backward"]["median_us"] > 0
    assert both["without_backward"]["absent"] == "it has no backward: no output requires a gradient"
    assert "missing a required argument: 'axis'" in forward["with_another_argument"]["absent"]
    assert not should_have_run(both["without_backward"])
    assert not should_have_run(forward["with_another_argument"])


def test_another_number_of_outputs_is_wrong():
    work = replace(TINY, also={"twice": lambda x, weight: (right(x, weight), x)})
    assert "it returns [(1024, 32), (1024, 32)], the op [(1024, 32)]" in by_name(work, "forward")["twice"]["absent"]


def in_place(x, weight):
    y = right(x, weight)
    x.detach().copy_(y)
    return y


def doubled_in_place(x, weight):
    y = right(x, weight)
    weight.detach().mul_(2)
    return y


def test_what_writes_its_inputs_is_wrong_and_spoils_no_other():
    peers = TINY.peers | {"careless": lambda i: doubled_in_place(**i)}
    work = replace(TINY, also={"in_place": in_place, "right": right}, peers=peers)
    found = by_name(work, "forward")
    assert found["in_place"]["absent"] == "wrong, so not timed: it writes its input x"
    assert should_have_run(found["in_place"])
    assert all(found[name]["median_us"] > 0 for name in ("ours", "right", "torch", "careless"))
    assert found["careless"]["note"] == "it writes its input weight", "a peer may, on inputs that are restored"
    both = by_name(replace(TINY, also={"in_place": doubled_in_place, "right": right}), "forward+backward")
    assert both["in_place"]["absent"] is not None
    assert both["right"]["median_us"] > 0


def test_inputs_are_the_same_for_every_sample():
    seen = set()

    def careless(i):
        seen.add(float(i["weight"].sum()))
        return doubled_in_place(**i)

    work = replace(TINY, make=constant, at=lambda rows: constant, peers={"careless": careless})
    assert by_name(work, "forward")["careless"]["rounds"] >= 5
    assert seen == {32.0}


def constant(device, dtype):
    return {"x": torch.randn(64, 32, device=device, dtype=dtype), "weight": torch.ones(32, device=device, dtype=dtype)}


def test_what_the_op_itself_writes_is_no_fault():
    (work,) = asked(["tokens=3,cache"], ["rotary"])

    def mine(q, k, positions, inv_freq, v, k_cache, v_cache, slots):
        return torchs(locals())

    found = by_name(replace(work, also={"mine": mine}), "forward", only={"ours", "mine", "torch"})
    assert all(x["median_us"] > 0 and not x["note"] for x in found.values())


def test_another_dtype_is_wrong():
    work = replace(TINY, also={"wide": lambda x, weight: right(x, weight).double(), "right": right})
    for which in PASSES:
        found = by_name(work, which)
        assert "it returns torch.float64, the op torch.float32 (number 0 of" in found["wide"]["absent"]
        assert found["right"]["median_us"] > 0


def test_a_peer_is_held_to_the_budget_too():
    def off(i):
        return wrong(**i)

    work = replace(
        TINY, peers={"torch": off, "torch.compile": off, "scaled": off}, differs={"scaled": (0.051, "a scale")}
    )
    found = by_name(work, "forward")
    for name in ("torch", "torch.compile"):
        assert "exceeds the budget" in found[name]["absent"], "two that share a mistake do not vouch for each other"
        assert should_have_run(found[name])
    assert found["ours"]["median_us"] > 0
    assert found["scaled"]["median_us"] > 0
    assert found["scaled"]["note"] == "outside the error budget, as it may be to 5.1e-02: a scale"
    assert found["ours"]["best_peer"] == "scaled"
    more = by_name(replace(work, differs={"scaled": (0.049, "a scale")}), "forward")["scaled"]
    assert "exceeds the budget" in more["absent"], "a reason explains an error up to its size"


def test_what_is_not_asked_for_is_not_called():
    called = []

    def peer(i):
        called.append("peer")
        return right(**i)

    def mine(x, weight):
        called.append("mine")
        return right(x, weight)

    work = replace(TINY, peers={"torch": peer}, also={"mine": mine})
    found = by_name(work, "forward", only={"mine"})
    assert (list(found), set(called)) == (["mine"], {"mine"})
    assert found["mine"]["error"] < 1e-5
    assert list(by_name(work, "forward", only={"ours"})) == ["ours"]
    assert set(called) == {"mine"}


def test_a_label_says_whose_kernel_it_is():
    assert label({"role": "ours", "chosen": "flash3"}) == "ours: auto took flash3 (FlashAttention 3)"
    assert label({"role": "ours", "chosen": "triton"}) == "ours: auto took triton"
    assert label({"role": "impl", "variant": "impl=triton"}) == "ours: triton"
    assert label({"role": "also", "variant": "mine"}) == "yours: mine"
    assert label({"role": "peer", "variant": "liger"}) == "liger"


def test_the_report_compares_yours_with_ours(tmp_path):
    found = [
        fake("won", 100, chosen="triton"),
        fake("won", 50, variant="mine") | {"role": "also"},
        fake("lost", 100, chosen="flash3"),
        fake("lost", 200, variant="mine") | {"role": "also"},
    ]
    text = report.markdown(found)
    assert "| made_up | won | forward | mine | 50.0 | 100.0 (triton) | 2.00 | faster |" in text
    assert "| made_up | lost | forward | mine | 200.0 | 100.0 (flash3, FlashAttention 3) | 0.50 | loses |" in text
    assert "mine (yours)" in text
    assert "Yours against ours" not in report.markdown(found[::2])
