"""A curriculum for recordings at hand: sizes follow from the data, and an index is made where there is none."""

import json
import math

import pytest

from afn_model import AFNextProcessor
from afn_model.data.index import Corpus
from afn_model.train.curriculum import made_curriculum
from afn_model.train.one_command import Wishes, corpora_of, measured, one_stage, yaml_of
from afn_model.train.values import parse_yaml
from bench.resume import prepare
from tests.tiny import processor, record


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    prepare(folder)
    return folder, AFNextProcessor.from_pretrained(folder / "base")


def test_the_sizes_follow_from_the_data(desk):
    folder, of = desk
    corpora = corpora_of(str(folder / "tones.jsonl"), may_index=False)
    found = measured(corpora, of, "sft")
    assert found.records == 48
    assert 0.5 < found.seconds <= 2.5
    raw = one_stage(corpora, of, Wishes(lora=4))
    (stage,) = made_curriculum(raw, "lora").stages
    assert (stage.name, stage.trains, stage.lora, stage.lr) == (
        "lora",
        ("language_model",),
        {"rank": 4, "alpha": 8},
        1e-4,
    )
    assert stage.context % 64 == 0
    assert found.largest <= stage.context < found.largest + 256
    assert stage.max_audio == math.ceil(found.seconds)
    # 48 records three times: at least 20 steps, of at most 8 samples.
    assert 144 * found.mean / stage.batch_tokens >= 20
    assert made_curriculum(parse_yaml(yaml_of(raw)), "lora").stages == (stage,)


def test_wishes_are_granted_and_ranks_have_a_sequence_each(desk):
    folder, of = desk
    corpora = {"tones": str(folder / "tones.jsonl")}
    wishes = Wishes(steps=40, lr=3e-5, context=192, eval="0.1")
    (stage,) = made_curriculum(one_stage(corpora, of, wishes, ranks=3), "x").stages
    assert (stage.name, stage.trains, stage.lr, stage.context) == ("finetune", ("adaptor", "language_model"), 3e-5, 192)
    assert (stage.steps, stage.epochs, stage.bins % 3) == (40, math.inf, 0)
    assert stage.eval == {"share": 0.1, "every": 4, "keep_best": True}
    (stage,) = made_curriculum(one_stage(corpora, of, Wishes(batch_tokens=768, context=192)), "x").stages
    assert (stage.batch_tokens, stage.epochs) == (768, 3)


def test_pairs_for_dpo(tmp_path):
    of = processor()
    pair = {"messages": [{"role": "user", "content": "What is said?"}], "chosen": "A dog barks.", "rejected": "One"}
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"id": i} | pair) + "\n" for i in range(100)))
    corpora = corpora_of(str(tmp_path / "*.jsonl"), may_index=True)
    (stage,) = made_curriculum(one_stage(corpora, of, Wishes(method="dpo"), ranks=4), "x").stages
    assert (stage.name, stage.method, stage.lr, stage.epochs) == ("dpo", "dpo", 1e-6, 1)
    assert stage.batch_prompts == 4  # 100 pairs make 25 steps of it
    with pytest.raises(ValueError, match=r"no record that sft can learn from: .*pairs\.jsonl\[99\]: nothing to learn"):
        one_stage(corpora, of, Wishes())


def test_an_index_is_made_where_one_process_may(tmp_path):
    record(tmp_path / "a.wav", 1.5)
    line = {"sound": "a.wav", "conversations": [{"from": "human", "value": "<sound>?"}, {"from": "gpt", "value": "x"}]}
    for name in ("one.two.jsonl", "one.three.jsonl"):
        (tmp_path / name).write_text(json.dumps(line) + "\n")
    file = str(tmp_path / "one.two.jsonl")
    with pytest.raises(ValueError, match="no index; make one with"):
        corpora_of(file, may_index=False)
    assert corpora_of(file, may_index=True) == {"one": file}
    assert Corpus(file).seconds(0) == 1.5
    (tmp_path / "one.two.jsonl").write_text(2 * (json.dumps(line) + "\n"))
    assert len(Corpus(corpora_of(file, may_index=True)["one"])) == 2
    with pytest.raises(ValueError, match=r"one\.three\.jsonl and .*one\.two\.jsonl have one name"):
        corpora_of(str(tmp_path / "one*.jsonl"), may_index=True)
    with pytest.raises(ValueError, match="nothing is called like this"):
        corpora_of(str(tmp_path / "two*.jsonl"), may_index=True)
