"""What the network reads of a batch: everything is in two copies, and nothing changes with where it was made."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from afn_distributed.comm import in_threads
from afn_distributed.hybrid import SequenceParallel
from afn_model.network import device_batch
from afn_model.network.device_batch import AudioInputs, DeviceBatch
from afn_model.prompt.batch import IGNORED, Batch
from tests.tiny import noise, tiny


@pytest.fixture(scope="module")
def parts():
    model, processor = tiny()
    processor.pcm_dtype = torch.int16

    def talk(seconds, said):
        audio = [{"type": "audio", "audio": noise(seconds, 1)}] if seconds else []
        asked = {"role": "user", "content": [*audio, {"type": "text", "text": "What?"}]}
        return [asked, {"role": "assistant", "content": said}]

    talks = [talk(1.3, "yes it is"), talk(31.0, "no"), talk(0, "yes no"), talk(0.4, "it is")]
    return model, processor(talks, training=True)


def ragged(batch: Batch) -> Batch:
    """The batch with its windows one after another."""
    rows = zip(batch.pcm, batch.samples.tolist(), strict=True)
    return replace(batch, pcm=torch.cat([row[:count] for row, count in rows]))


def test_windows_without_padding_are_the_same_windows(parts):
    model, batch = parts
    flat = ragged(batch)
    assert flat.pcm.nbytes < 0.6 * batch.pcm.nbytes
    assert torch.equal(flat.windows, batch.windows)
    assert torch.equal(model.loss(flat), model.loss(batch))
    for own in (torch.tensor([0, 2, 3]), torch.tensor([1, 2]), torch.tensor([], dtype=torch.int64)):
        padded, packed = AudioInputs.of(batch, own), AudioInputs.of(flat, own)
        assert packed.samples == padded.samples
        width = packed.padded().shape[1]
        assert torch.equal(padded.padded()[:, :width], packed.padded())
        assert torch.equal(packed.window, padded.window)


def test_what_is_counted_is_what_is_in_it(parts):
    model, batch = parts
    here = DeviceBatch.of(batch, model.config)
    assert torch.equal(here.rows, (batch.targets != IGNORED).nonzero().squeeze(1))
    assert (here.supervised, here.longest) == (batch.supervised, int(batch.cu_seqlens.diff().max()))
    assert torch.equal(here.audio_rows, (batch.input_ids == model.config.audio_token_id).nonzero().squeeze(1))
    assert here.audio.frame.tolist()[-10:] == list(range(10)), "the last window begins anew"
    assert here.audio.window.unique().tolist() == [0, 1]


@pytest.mark.parametrize("split", [None, (2, 2)], ids=["alone", "2 x 2"])
def test_everything_is_copied_at_once(parts, split):
    """On a GPU each copy is a call of its own: two for a micro-batch, whatever it holds and whoever shares it."""
    model, batch = parts
    groups = SequenceParallel.virtual(*split) if split else [None]
    made = in_threads(lambda rank: DeviceBatch.of(batch, model.config, groups[rank]), len(groups))
    for one in made:
        copies = []

        def to(x, device, copies=copies, **options):
            copies.append(x)
            return x.clone()

        with mock.patch.object(torch.Tensor, "to", to):
            exchanges = {} if one.shard is None else one.shard.exchanges()
            there, _ = device_batch.moved((one, exchanges), one.audio.pcm, torch.device("meta"))
        assert len(copies) == 2
        assert copies[0].nbytes < one.audio.pcm.nbytes == copies[1].nbytes, "the samples are copied once"
        assert there.audio.pcm is not one.audio.pcm
        for name in ("input_ids", "positions", "cu_seqlens", "audio_rows", "targets", "rows"):
            assert torch.equal(getattr(there, name), getattr(one, name)), name
        assert torch.equal(there.audio.windows.known_rows[1], one.audio.windows.known_rows[1])
        assert there.audio.windows.known_rows[1] is not one.audio.windows.known_rows[1]


def test_what_does_not_fit_is_said_before_anything_is_copied(parts):
    model, batch = parts
    ids = batch.input_ids.clone()
    ids[0] = model.config.text.vocab_size
    with pytest.raises(ValueError, match="is past the vocabulary of"):
        model.prepare(replace(batch, input_ids=ids))
    with pytest.raises(ValueError, match="audios have 3 windows, but there are 4"):
        model.prepare(replace(batch, windows_per_audio=torch.tensor([1, 1, 1])))
    without = replace(batch, pcm=None, samples=batch.samples[:0], windows_per_audio=batch.windows_per_audio[:0])
    with pytest.raises(ValueError, match=r"\d+ audio placeholders in the prompt for 0 audio embeddings"):
        model.loss(without)
