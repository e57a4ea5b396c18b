"""Bad input is one line that says what was wrong, from whichever implementation would have run."""

import pytest
import torch

import afn_kernels as ak
from afn_kernels.decode_attention.arguments import check_values


def made(page=0):
    cache = torch.zeros(4, page, 2, 16) if page else torch.zeros(2, 32, 2, 16)
    i = {"q": torch.zeros(2, 1, 4, 16), "k_cache": cache, "v_cache": cache, "lengths": torch.tensor([32, 9])}
    return i | ({"block_table": torch.tensor([[0, 1], [2, 3]])} if page else {})


MISFITS = {
    "query heads": ({"q": torch.zeros(2, 1, 3, 16)}, "3 query heads over 2 KV heads"),
    "no KV heads": ({name: torch.zeros(2, 32, 0, 16) for name in ("k_cache", "v_cache")}, "4 query heads over 0 KV"),
    "no elements": (
        {"q": torch.zeros(2, 1, 4, 0)} | {name: torch.zeros(2, 32, 2, 0) for name in ("k_cache", "v_cache")},
        "heads of 0 elements",
    ),
    "another head_dim": ({"q": torch.zeros(2, 1, 4, 8)}, r"q \(2, 1, 4, 8\), k_cache \(2, 32, 2, 16\)"),
    "sequences": ({"lengths": torch.tensor([1])}, "2 queries, 2 caches, 1 lengths"),
    "lengths elsewhere": ({"lengths": torch.zeros(2, device="meta").int()}, "lengths is on meta, expected cpu"),
    "table elsewhere": (
        {"block_table": torch.zeros(2, 2, device="meta").int()},
        "block_table is on meta, expected cpu",
    ),
    "scale elsewhere": ({"k_scale": torch.ones(1, device="meta")}, "k_scale is on meta, expected cpu"),
    "scale of no tensor": ({"v_scale": 0.5}, "v_scale is a float, expected a tensor"),
    "lengths of bool": ({"lengths": torch.tensor([True, True])}, "lengths is torch.bool, expected integers"),
    "table of floats": ({"block_table": torch.zeros(2, 2)}, "block_table is torch.float32, expected integers"),
    "table of one axis": ({"block_table": torch.zeros(2).int()}, r"block_table \(2,\) do not fit \[B, pages\]"),
    "prefixes of floats": ({"prefix_lengths": torch.zeros(1)}, "prefix_lengths is torch.float32, expected integers"),
    "three groups": ({"prefix_lengths": torch.zeros(3).int()}, "2 sequences are not 3 groups of equal size"),
    "no groups": ({"prefix_lengths": torch.zeros(0).int()}, "2 sequences are not 0 groups of equal size"),
    "prefixes of two axes": ({"prefix_lengths": torch.zeros(1, 1).int()}, r"prefix_lengths \(1, 1\) do not fit"),
    "length below": ({"lengths": torch.tensor([1, 0])}, "length 0 is below the 1 new tokens"),
    "length past": ({"lengths": torch.tensor([33, 5])}, "length 33 is past the capacity 32"),
    "prefix of all": (
        {"prefix_lengths": torch.tensor([9])},
        "a prefix of 9 keys is no part of the 8 keys before the new tokens of sequence 1",
    ),
    "negative prefix": ({"prefix_lengths": torch.tensor([-1])}, "a prefix of -1 keys is no part"),
}


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
@pytest.mark.parametrize(("change", "message"), MISFITS.values(), ids=MISFITS)
def test_bad_input(change, message, impl):
    with pytest.raises(ValueError, match=f"decode_attention: .*{message}") as raised:
        ak.decode_attention(**(made() | change), impl=impl)
    assert "\n" not in str(raised.value)


def test_pages_that_are_not_there():
    i = made(page=16)
    i["block_table"][1, 1] = 99  # nobody reads it
    ak.decode_attention(**i)
    for page in (4, -1):
        i["block_table"][0, 1] = page
        with pytest.raises(ValueError, match=f"page 1 of sequence 0 is {page}, outside the 4 pages"):
            ak.decode_attention(**i)
    i["block_table"][0] = torch.tensor([-1, 1])
    ak.decode_attention(**i, window=(15, 0))
    with pytest.raises(ValueError, match="page 0 of sequence 0 is -1"):
        ak.decode_attention(**i, window=(16, 0))


def test_pages_of_a_prefix_are_those_of_the_first():
    i = made(page=16)
    i |= {"lengths": torch.tensor([32, 32]), "prefix_lengths": torch.tensor([16])}
    i["block_table"][1, 0] = -1
    ak.decode_attention(**i)
    with pytest.raises(ValueError, match="page 0 of sequence 1 is -1"):
        ak.decode_attention(**i | {"prefix_lengths": torch.tensor([15])})
    i["block_table"][0, 0] = -1
    with pytest.raises(ValueError, match="page 0 of sequence 0 is -1"):
        ak.decode_attention(**i)


def test_the_check_of_values_stands_alone():
    """It is what a debug switch calls for tensors that are not on the CPU."""
    i = made(page=16)
    check_values(i["q"], i["k_cache"], i["lengths"], i["block_table"])
    with pytest.raises(ValueError, match="length 40 is past the capacity 32"):
        check_values(i["q"], i["k_cache"], torch.tensor([40, 1]), i["block_table"])
    check_values(i["q"][:0], i["k_cache"], i["lengths"][:0], i["block_table"][:0])


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_no_sequences_and_no_new_tokens(impl):
    i = {name: x[:0] for name, x in made().items()}
    assert ak.decode_attention(**i, impl=impl).shape == (0, 1, 4, 16)
    i = made() | {"q": torch.zeros(2, 0, 4, 16)}
    assert ak.decode_attention(**i, impl=impl).shape == (2, 0, 4, 16)
    i = {name: x[:0] for name, x in made(page=16).items() if "cache" not in name} | {
        name: torch.zeros(0, 0, 2, 16) for name in ("k_cache", "v_cache")
    }
    assert ak.decode_attention(**i, impl=impl).shape == (0, 1, 4, 16)
