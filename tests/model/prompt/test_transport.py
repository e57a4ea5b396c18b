"""What a worker hands over: any object, its tensors in one buffer."""

import gc
import weakref

import torch

from afn_model.prompt.batch import Prepared
from afn_model.prompt.transport import ALIGNED, Parcel


def test_any_object_comes_back_with_its_tensors_in_one_buffer():
    pcm = torch.arange(-3, 4, dtype=torch.int16)
    labels = torch.tensor([[1, -100], [2, 3]])
    sent = {"a": [Prepared(torch.arange(3), None, [pcm, pcm[:0]]), "text"], "b": (labels, torch.tensor(True), labels.T)}
    parcel = Parcel.of(sent)
    found = parcel.unpack()
    assert torch.equal(found["a"][0].ids, torch.arange(3))
    assert found["a"][0].clips[0].tolist() == pcm.tolist()
    assert (found["a"][0].clips[1].shape, found["a"][0].clips[1].dtype) == ((0,), torch.int16)
    assert found["a"][1] == "text"
    for one, two in zip(found["b"], sent["b"], strict=True):
        assert (one.dtype, one.tolist()) == (two.dtype, two.tolist())
    buffers = {x.untyped_storage().data_ptr() for x in (*found["b"], *found["a"][0].clips)}
    assert buffers == {parcel.buffer.untyped_storage().data_ptr()}
    assert all(first % ALIGNED == 0 for first, _, _ in parcel.tensors)


def test_a_tensor_that_comes_twice_is_sent_once():
    one = torch.arange(100)
    parcel = Parcel.of([one, one])
    assert parcel.buffer.nbytes <= one.nbytes + ALIGNED
    first, second = parcel.unpack()
    assert first is second
    assert Parcel.of("no tensors").unpack() == "no tensors"


def test_nothing_waits_for_garbage_to_be_collected():
    """The trainer collects every 50 steps: until then the samples of all their micro-batches would stay in memory."""
    gc.collect()
    gc.disable()
    try:
        sent = {"pcm": torch.arange(100)}
        parcel = Parcel.of(sent)
        found = parcel.unpack()
        kept = [weakref.ref(x) for x in (sent["pcm"], found["pcm"], parcel.buffer)]
        del sent, found, parcel
        assert [ref() for ref in kept] == [None, None, None]
    finally:
        gc.enable()
