"""What holds every number to its budget: the orders of summation, the checks, and the table of margins."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import margins
from tests.budget import NOTES, assert_same_but_rounding, assert_within, assert_within_budget, largest, lost, pooled
from tests.orders import SHUFFLED, OtherOrder, aten, in_orders


class Everything(nn.Module):
    """A model that sums in every way that tests.orders knows."""

    def __init__(self):
        super().__init__()
        self.embed, self.conv = nn.Embedding(20, 32), nn.Conv1d(32, 32, 3, padding=1)
        self.norm, self.rms = nn.LayerNorm(32), nn.RMSNorm(32)
        self.project, self.head = nn.Linear(32, 32), nn.Linear(32, 20, bias=False)

    def forward(self, ids, labels, **options):
        x = self.norm(self.conv(self.embed(ids).mT).mT)
        q = self.project(x).view(2, 9, 4, 8).transpose(1, 2)
        x = F.scaled_dot_product_attention(q, 2 * q, q + 1, **options).transpose(1, 2).flatten(2)
        x = self.rms(torch.addmm(x.flatten(0, 1), x.flatten(0, 1), self.project.weight) + x.logsumexp(-1).view(-1, 1))
        scores = self.head(x).softmax(-1)
        return F.cross_entropy(scores, labels.flatten()) + scores.mv(scores[0]).dot(scores[:, 0]) + scores.mean()


def evaluate(model, *inputs, **options) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(*inputs, **options)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("masked", ["no mask", "causal", "a mask"])
def test_other_orders_have_the_same_sums_and_other_roundings(masked, monkeypatch):
    model = Everything()
    ids, labels = torch.randint(20, (2, 2, 9))
    mask = (torch.rand(2, 1, 9, 9) > 0.3) | torch.eye(9, dtype=torch.bool)
    options = {"no mask": {}, "causal": {"is_causal": True}, "a mask": {"attn_mask": mask}}[masked]
    seen = set()
    for op, shuffle in list(SHUFFLED.items()):
        monkeypatch.setitem(SHUFFLED, op, lambda *a, op=op, f=shuffle, **k: (seen.add(op), f(*a, **k))[1])
    wide = copy.deepcopy(model).double()
    first, *others = in_orders(lambda: evaluate(wide, ids, labels, **options), 4)
    for tensor, *more in zip(first, *others, strict=True):
        assert max(lost(more, tensor)) < 1e-13
    narrow = in_orders(lambda: evaluate(model, ids, labels, **options), 4)
    for number, tensor in enumerate(first):
        assert 1e-9 < largest(lost([one[number] for one in narrow], tensor)) < 1e-5
    assert any(not torch.equal(a, b) for one in narrow[1:] for a, b in zip(one, narrow[0], strict=True))
    rare = {aten.addmv, aten.addmm_, aten.baddbmm, aten.baddbmm_, aten.bmm, aten.sum}
    assert seen >= set(SHUFFLED) - rare


def test_an_order_is_a_function_of_its_seed():
    x = torch.randn(1000)
    found = []
    for seed in (1, 1, 2):
        with OtherOrder(seed) as mode:
            found.append(mode.order(1000))
            assert torch.equal(torch.zeros(3) + 1, torch.ones(3))
            x.sum()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_what_is_wrong_fails_and_what_is_used_is_noted(tmp_path, monkeypatch):
    monkeypatch.setenv(NOTES, str(tmp_path / "notes"))
    x, w = torch.randn(50, 64), torch.randn(64)
    exact, same = x.double() @ w.double(), in_orders(lambda: x @ w)
    floor = largest(lost(same, exact))
    assert_within_budget(same[0], same, exact, name="right")
    assert_same_but_rounding({"a": same[0]}, [{"a": one} for one in same])
    for wrong, said in (
        (exact + 4 * floor * exact.abs().max() + 1e-5, "exceeds the budget"),
        (torch.full_like(exact, float("nan")), "not finite"),
    ):
        with pytest.raises(AssertionError, match=said):
            assert_within_budget(wrong.float(), same, exact)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_within(torch.ones(3), torch.tensor([1.0, 1.0, 1.5]), torch.tensor([0.0, 0.0, 0.4]))
    with pytest.raises(AssertionError, match="exceeds"):
        assert_within(torch.ones(1), torch.full((1,), float("nan")), 1.0)
    used = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    assert [one["of"] for one in used[:2]] == ["right", "a"]
    assert used[0]["used"] <= 0.5
    assert used[0]["test"].endswith("test_what_is_wrong_fails_and_what_is_used_is_noted")


def test_the_largest_of_a_few():
    assert largest([2.0]) == 2.0
    assert largest([1.0, 1.01, 1.02, 1.02]) == pytest.approx(1.041, abs=1e-3), "independent errors: hardly more"
    assert largest([0.1, 0.9, 0.5]) > 1.5, "one rounding that decides"


def test_the_table_of_margins():
    notes = [{"test": "a.py::one[x]", "of": "dq", "used": 0.8}, {"test": "a.py::one[y]", "of": "dk", "used": 0.2}]
    runs = [margins.MarginsRun("avx2", 2, 0, 2, 9.0, (), (*notes, {"test": "a.py::two", "of": "", "used": 0.001}))]
    records = margins.by_test(runs)
    assert (records[0]["test"], records[0]["worst"]) == ("a.py::one[x]", 0.8)
    where = {"machine": "x86_64", "cores": 2, "torch": "2", "date": "2026-11-29T", "commit": "abc"}
    where["header"] = margins.header(runs)
    text = margins.table([{**record, **where} for record in records])
    assert "3 tests at abc, 2026-11-29. 1 runs: avx2; 2 threads; 1 seeds; longest 9 s; failed: 0" in text
    assert "| a.py::one | 2 | 2 | 0.500 | 0.800 | x, dq, avx2, 2 threads, seed 0 |" in text
    assert "Above 0.7: 1 of 3 tests" in text
    assert "Never above 0.01: a.py::two." in text


def test_the_same_tensors_of_other_layers_are_throws_of_the_same_dice():
    found = pooled({"layers.0.weight": [1.0], "layers.11.weight": [2.0, 3.0], "head.weight": [4.0]})
    assert found == {"layers.0.weight": [1.0, 2.0, 3.0], "layers.11.weight": [1.0, 2.0, 3.0], "head.weight": [4.0]}
    one = torch.ones(2)
    first, others = {"a.0": one, "a.1": one}, {"a.0": torch.tensor([1.0, 1.5]), "a.1": one}
    assert_same_but_rounding({"a.0": torch.ones(2), "a.1": torch.tensor([1.0, 1.2])}, [first, others])
    with pytest.raises(AssertionError, match="b"):
        assert_same_but_rounding({"b": torch.tensor([1.0, 1.2])}, [{"b": one}, {"b": one}])


def test_what_was_above_is_measured_again(tmp_path, monkeypatch):
    """Rows of functions that used too much are replaced, the others and their header stay."""
    out = tmp_path / "margins.jsonl"
    where = {"machine": "m", "cores": 2, "torch": "2", "date": "2020-01-01T00", "commit": "old", "header": "30 runs"}
    old = [{"test": f"tests/x.py::{name}", "checks": 1, "mean": 0.1, "worst": worst, "of": "", "run": "r", **where}
           for name, worst in (("high[a]", 0.9), ("high[b]", 0.2), ("low", 0.3))]  # fmt: skip
    out.write_text("".join(json.dumps(row) + "\n" for row in old))
    asked = []

    def measure(runs, tests):
        asked.extend(tests)
        run = margins.replace(runs[0], notes=({"test": "tests/x.py::high[a]", "of": "", "used": 0.5},))
        return [run]

    monkeypatch.setattr(margins, "measure", measure)
    monkeypatch.setattr("sys.argv", ["margins", "--again", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        margins.main()
    assert ended.value.code == 0
    assert asked == ["tests/x.py::high"]
    rows = {row["test"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows.keys() == {"tests/x.py::high[a]", "tests/x.py::low"}
    assert rows["tests/x.py::high[a]"]["worst"] == 0.5
    assert rows["tests/x.py::low"]["commit"] == "old"
    assert "again" in out.with_suffix(".md").read_text()
