"""A curriculum is read from YAML, and what is wrong with it is said in one line before anything is loaded."""

import pytest

from afn_model.train.curriculum import Start, read_curriculum, write_curriculum
from afn_model.train.method_of import method_settings
from afn_model.train.run_layout import for_stage, read_layout
from afn_model.train.values import HERE

GOOD = """
datasets: {a: a.jsonl, b: b.jsonl}
defaults: {context: 64, batch_tokens: 128, warmup: 0.1}
stages:
  one: {trains: adaptor, blend: {a: 1}, lr: 1e-3}
  two: {trains: [encoder, adaptor], blend: {like: one, times: 0.5, b: 2}, start: {stage: one, at: 0.5}}
  three: {trains: all, blend: {b: 1}, start: two, method: grpo, batch_prompts: 4, release_name: Instruct}
"""


def write(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return file


def test_stages_take_defaults_blends_and_starts(tmp_path):
    curriculum = read_curriculum(write(tmp_path, GOOD), data=tmp_path / "data")
    one, two, three = curriculum.stages
    assert (one.lr, one.warmup, one.modules, one.bins) == (1e-3, 0.1, ("adaptor",), 2)
    assert two.blend == {"a": 0.5, "b": 2.0}
    assert two.start == Start("one", 0.5)
    assert curriculum.milestones("one") == [0.5]
    assert curriculum.milestones("two") == []
    assert three.bins == 4
    assert three.modules == ("encoder", "adaptor", "language_model", "lm_head")
    assert curriculum.datasets["a"] == tmp_path / "data" / "a.jsonl"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("trains: adaptor", "trains: decoder", "stage one: trains ['decoder']; the parts are"),
        ("blend: {a: 1}", "blend: {}", "stage one: the blend names no dataset"),
        ("blend: {a: 1}", "blend: {c: 1}", "stage one: no dataset c; there are a, b"),
        ("blend: {a: 1}", "blend: {a: many}", "stage one: blend weight of a is 'many', not a number"),
        ("like: one", "like: three", "stage two: the blend is like 'three', which is no earlier stage"),
        ("start: two", "start: four", "stage three: starts from 'four', but before it there are base, one, two"),
        ("at: 0.5}}", "at: 1.5}}", "stage two: starts from one at 1.5"),
        ("method: grpo", "method: ppo", "stage three: method 'ppo'"),
        ("method: grpo", "method: talker", "stage three: trains ['all']; the parts are talker"),
        ("lr: 1e-3", "codec: {crop: 1}", "stage one: codec has settings for stages of method codec"),
        ("batch_prompts: 4", "batch_prompts: 0", "counts prompts"),
        ("batch_tokens: 128", "batch_tokens: 100", "stage one: batch_tokens 100 is no multiple of the context 64"),
        ("lr: 1e-3", "learning_rate: 1e-3", "stage one has no learning_rate; it takes"),
        ("lr: 1e-3", "epochs: .inf", "stage one: no number of epochs, steps or minutes"),
        ("lr: 1e-3", "epochs: .inf, minutes: 0", "stage one: minutes 0.0 is no length of time"),
        ("lr: 1e-3", "schedule: cosin", "stage one: schedule 'cosin' is none of cosine, linear, constant"),
        ("lr: 1e-3", "betas: [0.9]", "stage one: betas [0.9] are not two numbers"),
        ("lr: 1e-3", "lora: {rank: 4}", "stage one: lora is for stages that train the language_model"),
        ("trains: all", "trains: all, lora: {rank: 4}", "stage three: lora needs a rank and an alpha"),
        ("trains: all", "trains: all, lora: {rang: 4}", "stage three: lora has no rang; it takes rank, alpha"),
        ("lr: 1e-3", "steps: 1.5", "stage one: steps is 1.5, not a whole number"),
        ("blend: {a: 1}", "blend: [a]", "stage one: blend: datasets and their weights are expected, not ['a']"),
        ("one: {trains: adaptor", "one: [x]\n  four: {trains: adaptor", "stage one: names and values are expected"),
        ("stages:", "stage:", "the curriculum has no stage; it takes"),
        ("datasets:", "datasets: [", "cannot be read as YAML"),
        ("a: a.jsonl", "a: {path: a.jsonl, speed: 3}", "dataset 'a': speed is 3; a number from 0.5 to 2 with"),
        ("a: a.jsonl", "a: {path: a.jsonl, rate: 2}", "dataset 'a' has no rate; it takes path, speed"),
        ("a: a.jsonl", "a: {speed: 0.9}", "dataset 'a': None is no path"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, before, after, message):
    assert before in GOOD
    file = write(tmp_path, GOOD.replace(before, after, 1))
    with pytest.raises(ValueError) as caught:
        read_curriculum(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


OF_SPEECH = {"afwhisper", "afwhisper-tiny"}
OF_VOICES = {"talk", "talk-tiny"}


@pytest.mark.parametrize(
    "name", sorted({path.stem for path in (HERE / "curricula").glob("*.yaml")} - OF_SPEECH - OF_VOICES)
)
def test_curricula_of_the_package_are_whole(name):
    curriculum = read_curriculum(name)
    assert len(curriculum.stages) == 7
    releases = [stage.release_name for stage in curriculum.stages]
    assert list(filter(None, releases)) == [
        "Captioner",
        "Instruct",
        "Think",
    ]
    assert curriculum["mid-2"].start == Start("mid-1", 0.5)
    for name, weight in curriculum["mid-1"].blend.items():
        assert curriculum["mid-2"].blend[name] == pytest.approx(0.5 * weight)
    assert curriculum["mid-2"].blend["long"] == 1
    for stage in curriculum.stages:
        for layout in sorted(path.stem for path in (HERE / "layouts").glob("*.yaml")):
            for_stage(read_layout(layout), stage)


@pytest.mark.parametrize("name", sorted(OF_SPEECH))
def test_curricula_of_speech_have_a_layout_for_every_stage(name):
    for stage in read_curriculum(name).stages:
        assert stage.method == "asr"
        for layout in ("cpu", "gpu", "8gpu", "128gpu"):
            assert for_stage(read_layout(layout), stage).ulysses == 1


@pytest.mark.parametrize("name", sorted(OF_VOICES))
def test_curricula_of_voices_train_a_codec_and_then_its_talker(name):
    curriculum = read_curriculum(name)
    assert [(stage.modules, str(stage.start)) for stage in curriculum.stages] == [
        (("codec",), "base"),
        (("talker",), "codec"),
    ]
    for stage in curriculum.stages:
        method_settings(stage)
        assert stage.eval["data"] in curriculum.datasets
        assert set(stage.blend) <= set(curriculum.datasets)
        for layout in ("cpu",) if name == "talk-tiny" else ("gpu", "8gpu", "128gpu"):
            for_stage(read_layout(layout), stage)
    assert name == "talk-tiny" or all(stage.bins % 128 == 0 for stage in curriculum.stages)


def test_the_curriculum_of_the_encoder_trains_the_decoder_first():
    curriculum = read_curriculum("afwhisper")
    assert [stage.modules for stage in curriculum.stages] == [("decoder",), ("encoder", "decoder")]
    assert str(curriculum["both"].start) == "decoder"
    assert set(curriculum["both"].blend) == set(curriculum.datasets)
    for stage in curriculum.stages:
        assert (stage.method, stage.bins % 128) == ("asr", 0)
        for layout in ("gpu", "8gpu", "128gpu", "cpu"):
            for_stage(read_layout(layout), stage)
        with pytest.raises(ValueError, match=f"^stage {stage.name}: ulysses 2 x ring 1, but method asr gives every"):
            for_stage(read_layout("8gpu", {"ulysses": 2}), stage)


@pytest.mark.parametrize("name", ["afnext", "afwhisper", "tiny"])
def test_a_curriculum_is_written_and_read_back(tmp_path, name):
    curriculum = read_curriculum(name, data=tmp_path)
    write_curriculum(curriculum, tmp_path / f"{name}.yaml")
    assert read_curriculum(tmp_path / f"{name}.yaml") == curriculum


def test_speeds_are_written_and_read_back(tmp_path):
    fast = "a: {path: a.jsonl, speed: 1.1}, c: {path: a.jsonl}"
    curriculum = read_curriculum(write(tmp_path, GOOD.replace("a: a.jsonl", fast)))
    assert curriculum.speeds == {"a": 1.1}
    assert curriculum.datasets["a"] == curriculum.datasets["c"] == tmp_path / "a.jsonl"
    write_curriculum(curriculum, tmp_path / "again.yaml")
    assert read_curriculum(tmp_path / "again.yaml") == curriculum


def test_a_former_name_is_read_with_a_warning(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "datasets: {a: a.jsonl}\nstages:\n  one: {trains: all, blend: {a: 1}, batch_tokens: 8192, becomes: Instruct}\n"
    )
    with pytest.warns(UserWarning, match="stage one: becomes is now called release_name"):
        assert read_curriculum(file)["one"].release_name == "Instruct"
