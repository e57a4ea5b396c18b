from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("espeakng_loader", reason="recordings speak with espeakng-loader")

from afn_kernels import _cpu
from afn_model.curate import fingerprint as fp
from tests.model.curate.audio import CHANGES, SAMPLE_RATE, mp3, recordings, tensor


@pytest.fixture(scope="module")
def pcm():
    return recordings()


@pytest.fixture(scope="module")
def prints(pcm):
    return {name: fp.fingerprint(tensor(one)) for name, one in pcm.items()}


@pytest.fixture(scope="module")
def index(prints):
    return fp.FingerprintIndex(prints.items())


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_crop_is_found_where_it_is(pcm, prints, index, change):
    for place, (name, one) in enumerate(pcm.items()):
        if (change, name) == ("noise", "loop"):
            continue  # its notes fade below the noise
        begin = 3_000 + 123 * place  # no whole number of frames
        crop = one[begin : begin + 2 * SAMPLE_RATE]
        query, there = fp.fingerprint(tensor(CHANGES[change](crop))), fp.fingerprint(tensor(crop)).information
        matches = index.matches(query)
        assert {match.name for match in matches} == {name}
        assert sum(match.bits for match in matches) > 0.7 * min(there, query.information), name
        offsets = [match.offset * fp.STEP_SECONDS - begin / SAMPLE_RATE for match in matches]
        if name != "loop":  # whose bars are the same
            assert max(map(abs, offsets)) < 0.03


def test_a_clip_is_found_inside_a_long_recording(pcm, prints, index):
    inside = CHANGES["mp3"](np.concatenate([pcm["rain 0"], pcm["speech 0"], pcm["bell 0"]]))
    (match,) = [one for one in index.matches(fp.fingerprint(tensor(inside))) if one.name == "speech 0"]
    length = len(pcm["rain 0"]) / SAMPLE_RATE
    assert match.start - match.there == pytest.approx(length, abs=0.03)
    assert match.end == pytest.approx(length + len(pcm["speech 0"]) / SAMPLE_RATE, abs=0.6)


def test_a_loop_does_not_crowd_out_what_is_beside_it(pcm, index, monkeypatch):
    monkeypatch.setattr(fp, "CANDIDATES", fp.OF_ITEM + 1)  # fewer than offsets at which a loop is like itself
    both = fp.fingerprint(tensor(np.concatenate([*[pcm["loop"]] * 6, CHANGES["mp3"](pcm["dog 0"])])))
    assert {one.name for one in index.matches(both)} >= {"loop", "dog 0"}


def test_a_stretch_ends_where_the_other_recording_goes_on():
    random = np.random.default_rng(4)
    codes, other = random.integers(0, 1 << 32, (2, 400), dtype=np.uint32)
    sure = np.full(400, 0xFFFF, np.uint32)
    other[150:250] = codes[100:200]
    index = fp.FingerprintIndex([("other", fp.Fingerprint(other, sure))])
    (match,) = index.matches(fp.Fingerprint(codes, sure))
    assert (match.first, match.last, match.offset) == (100, 200, 50)
    assert (match.bits, match.wrong) == (1600, 0.0)
    codes[101:200:2] ^= 0xF  # an eighth of the bits, where nothing is looked up
    assert index.matches(fp.Fingerprint(codes, sure)) == []
    (match,) = index.matches(fp.Fingerprint(codes, sure), wrong=0.2)
    assert match.wrong == pytest.approx(1 / 8, abs=0.01)


def test_what_is_not_the_same_is_not_found(prints, index):
    others = recordings(seed=100)
    time = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    others |= {"tone": 0.3 * np.sin(2 * np.pi * 440 * time), "silence": np.zeros(4 * SAMPLE_RATE)}
    for name, one in others.items():
        query = fp.fingerprint(tensor(np.float32(one)))
        if name.startswith("speech"):
            continue  # the synthesiser says the same words with the same samples
        assert _share(query, index.matches(query)) < 0.3, name
        assert query.is_findable == (name not in ("tone", "silence"))
    for name, one in prints.items():  # the same voice with other words shares some, and far less than all
        assert _share(one, index.matches(one, but=name)) < 0.5, name


def _share(query, matches):
    return fp.share_covered(query, [one.stretch for one in matches])


def test_shares_count_what_is_covered_once_and_in_one_alignment():
    random = np.random.default_rng(3)
    one = fp.Fingerprint(random.integers(0, 1 << 32, 100, dtype=np.uint32), np.full(100, 0xFF, np.uint32))
    match = partial(fp.SoundMatch, "other", bits=0, wrong=0.0, score=0.0)
    assert fp.share_covered(one, [(0, 30), (20, 50)]) == 0.5
    long = fp.Fingerprint(np.tile(one.codes, 4), np.tile(one.sure, 4))
    near = [match(first=110, last=140, offset=-100), match(first=150, last=180, offset=-102)]
    assert fp.share_aligned(long, one, near) == pytest.approx(0.6)
    far = [match(first=110, last=140, offset=-100), match(first=250, last=280, offset=-200)]
    assert fp.share_aligned(long, one, far) == pytest.approx(0.3)
    assert fp.share_aligned(one, long, [match(first=0, last=90, offset=100)]) == pytest.approx(0.9)


def test_pieces_and_files_make_the_same_codes(pcm, prints, tmp_path, monkeypatch):
    whole = tensor(np.concatenate(list(pcm.values())))
    expected = fp.fingerprint(whole)
    monkeypatch.setattr(fp, "CHUNK", 37)
    pieces = fp._joined(fp._codes(whole.split(7_001)))
    assert np.array_equal(pieces.codes, expected.codes)
    assert np.array_equal(pieces.sure, expected.sure)
    assert len(expected.codes) == (len(whole) - fp.CODE_SAMPLES) // 320 + 1
    (tmp_path / "a.mp3").write_bytes(mp3(pcm["speech 0"]))
    found = fp.fingerprint_of(tmp_path / "a.mp3")
    found.save(tmp_path / "a.npy")
    read = fp.read_fingerprint(tmp_path / "a.npy")
    assert np.array_equal(read.codes, found.codes)
    assert read.information == found.information > 1000
    for short in (0, fp.CODE_SAMPLES - 1):
        assert len(fp.fingerprint(torch.zeros(short)).codes) == 0


def test_other_processors_find_the_same(pcm, index, monkeypatch):
    one = tensor(CHANGES["mp3"](pcm["speech 1"]))
    found = {}
    for level in _cpu.simd_levels():
        monkeypatch.setenv("AFN_SIMD", level)
        found[level] = fp.fingerprint(one)
    assert len(found) > 1
    first, *others = found.values()
    for other in others:
        assert np.mean(first.codes != other.codes) < 0.01
        near = [(match.name, match.first, match.last, match.offset) for match in index.matches(other)]
        assert near == [(match.name, match.first, match.last, match.offset) for match in index.matches(first)]


def test_the_best_stretches_are_those_of_all():
    random = np.random.default_rng(0)
    for _ in range(20):
        gains = random.integers(-3, 4, 30).astype(float)
        found = list(fp.best_stretches(gains, 4.0))
        best = max(gains[a:b].sum() for a in range(30) for b in range(a + 1, 31))
        assert (found[0][2] if found else best) == pytest.approx(best) or best < 4.0
        taken = [place for first, last, _ in found for place in range(first, last)]
        assert len(taken) == len(set(taken))
        assert all(gains[first:last].sum() == score >= 4.0 for first, last, score in found)


def test_bits_are_counted_without_numpy_2(monkeypatch):
    words = np.random.default_rng(0).integers(0, 1 << 32, 1000, dtype=np.uint32)
    expected = [bin(word).count("1") for word in words.tolist()]
    assert fp._ones(words).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert fp._ones(words).tolist() == expected
