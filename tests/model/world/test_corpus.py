"""The corpus on disk and the word bank behind it."""

import json

import pytest
import soundfile
import torch

from afn_model.world import words
from afn_model.world.corpus import Corpus, majority_answer, read_records, texts, write_corpus
from afn_model.world.mixer import example
from afn_model.world.words import load_bank

pytest.importorskip("espeakng_loader")


def test_a_written_corpus_reads_back_as_it_was_made(tmp_path):
    steps = []
    write_corpus(tmp_path, 5, 4, seed=7, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(i, 9) for i in range(1, 10)]
    for split, size in (("train", 5), ("heldout", 4)):
        records = read_records(tmp_path / f"{split}.jsonl")
        assert len(records) == size
        for index, item in enumerate(records):
            clip = example(7, split, index)
            pcm, rate = soundfile.read(item["sound"], dtype="float32")
            assert rate == 16_000
            torch.testing.assert_close(torch.from_numpy(pcm), clip.pcm, rtol=0, atol=1 / 32768)
            assert item["id"] == clip.id
            assert item["duration"] == clip.seconds
            human, gpt = item["conversations"][:2]
            assert len(item["conversations"]) == (4 * len(clip.events) if split == "train" else 2)
            assert human == {"from": "human", "value": f"<sound>\n{clip.question}"}
            assert gpt == {"from": "gpt", "value": clip.answer}
            assert item["kind"] == clip.kind
            assert item["events"][0]["start"] == clip.onset
            assert item["events"][0]["label"] == clip.label


def test_a_damaged_record_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"id": "a", "sound": "a.wav"}) + '\n{"id": "b"\n')
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2"):
        read_records(path)


def test_corpus_is_a_dataset_of_the_same_examples():
    corpus = Corpus(7, "heldout", 12)
    assert [clip.id for clip in corpus] == [f"heldout-7-{index:06d}" for index in range(12)]
    assert torch.equal(corpus[11].pcm, example(7, "heldout", 11).pcm)
    with pytest.raises(IndexError, match="12 examples"):
        corpus[12]


def test_majority_answer_is_the_best_constant():
    clips = list(Corpus(7, "heldout", 300))
    best = majority_answer(clips)
    assert set(best) == {"speech", "sound", "onset"}
    for kind in ("speech", "sound"):
        answers = [clip.answer for clip in clips if clip.kind == kind]
        assert answers.count(best[kind]) == max(answers.count(answer) for answer in answers)
    onsets = [clip.onset for clip in clips if clip.kind == "onset"]
    errors = {t: sum(abs(onset - t / 10) for onset in onsets) for t in range(40)}
    assert abs(float(best["onset"].removesuffix(" s")) - min(errors, key=errors.get) / 10) <= 0.11


def test_texts_hold_every_question_and_answer():
    known = set(texts())
    for clip in Corpus(7, "heldout", 500):
        assert clip.question in known
        assert clip.answer in known


def test_a_kept_bank_is_the_built_one_and_a_damaged_one_is_refused(tmp_path, monkeypatch):
    built = load_bank("heldout")
    monkeypatch.setattr(words, "_BANKS", {})
    load_bank("heldout", tmp_path)
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(words, "_BANKS", {})
    monkeypatch.setattr(words, "build_bank", None)
    kept = load_bank("heldout", tmp_path)
    assert torch.equal(kept.pcm, built.pcm)
    assert torch.equal(kept.offsets, built.offsets)

    path.write_bytes(path.read_bytes()[:1000])
    monkeypatch.setattr(words, "_BANKS", {})
    with pytest.raises(ValueError, match="damaged word bank"):
        load_bank("heldout", tmp_path)


def test_a_bank_of_the_other_split_is_refused():
    with pytest.raises(ValueError, match="'train' needs its own word bank"):
        example(0, "train", 0, bank=load_bank("heldout"))
