"""Plans: what is wrong with one is said in one line; keys change with a stage and its descendants alone."""

from dataclasses import dataclass

import pytest
import yaml

from afn_model.curate.plan import STAGES as KNOWN
from afn_model.curate.plan import read_plan
from afn_model.curate.stage import Source, Stage
from tests.model.curate.toy import MODULE, STAGES, Toy

HERE = "tests.model.curate.test_plan"


@dataclass(frozen=True)
class ToyNoUrl(Source):
    name = "nourl"
    writes = ("word",)


@dataclass(frozen=True)
class ToyTwice(Stage):
    name = "twice"
    writes = ("word",)


@dataclass(frozen=True)
class ToyPicky(Stage):
    share: float = 0.5
    keep: bool = True
    name = "picky"

    def __post_init__(self):
        if self.share > 1:
            raise ValueError(f"share must be at most 1, got {self.share}")


def toy(*names):
    return [f"{MODULE}:{name}" for name in names]


PICKY = f"{HERE}:ToyPicky"
WRONG = [
    ("stages: []", "a plan has a list of stages"),
    ("- a", "a plan has a list of stages"),
    ("a: [", "no YAML"),
    ({"stages": toy("ToyFind"), "stage": 1}, "unknown field stage; a plan has name, stages"),
    ({"stages": ["fnid"]}, "no stage 'fnid'; there are discover, wanted, fetch"),
    ({"stages": ["no.such.module:Stage"]}, r"no stage 'no.such.module:Stage' \(No module named 'no'\)"),
    ({"stages": [f"{MODULE}:Toy"]}, "it is no Stage that is a dataclass"),
    ({"stages": [5]}, "a stage is a name, or a name with its parameters, got 5"),
    ({"stages": [{}]}, "a stage is a name"),
    ({"stages": [{"find": [1]}]}, "a stage is a name"),
    ({"stages": toy("ToyLoad")}, "the first stage finds recordings, and no other one does; the first is load"),
    ({"stages": toy("ToyFind", "ToyFind")}, "two stages are named find"),
    ({"stages": [f"{HERE}:ToyNoUrl"]}, "stage nourl finds recordings and does not write their url"),
    ({"stages": toy("ToyFind", "ToyTwins", "ToyLoad")}, "twins reads source_id: only load writes it, later"),
    ({"stages": toy("ToyFind", "ToyTwins")}, "stage twins reads source_id: no stage writes it"),
    ({"stages": [*toy("ToyFind"), f"{HERE}:ToyTwice"]}, "stages find and twice both write word"),
    ({"stages": [{toy("ToyFind")[0]: {"pth": 1}}]}, "ToyFind has no parameter pth; it has path"),
    ({"stages": [{toy("ToyFind")[0]: {"path": 1}}]}, "path must be text, got 1"),
    ({"stages": [{PICKY: {"share": "x"}}]}, "share must be a number, got 'x'"),
    ({"stages": [{PICKY: {"share": True}}]}, "share must be a number, got True"),
    ({"stages": [{PICKY: {"keep": 1}}]}, "keep must be true or false, got 1"),
    ({"stages": [{PICKY: {"share": 2}}]}, "share must be at most 1, got 2"),
    ({"stages": toy("ToyFind"), "shards": 0}, "shards must be a whole number from 1"),
    ({"stages": toy("ToyFind"), "budgets": {"load": {"calls": 1}}}, "budgets: load: expected a stage of the plan"),
    ({"stages": toy("ToyFind"), "budgets": {"find": {"money": 1}}}, "budgets: find: .*calls, tokens, seconds"),
    ({"stages": toy("ToyFind"), "budgets": {"find": {"calls": "x"}}}, "budgets: find: calls must be a finite number"),
    ({"stages": toy("ToyFind"), "annotators": ["a"]}, "annotators: expected a name for each"),
]


@pytest.mark.parametrize(("given", "told"), WRONG, ids=[told[:30] for _, told in WRONG])
def test_what_is_wrong_is_one_line(tmp_path, given, told):
    path = tmp_path / "plan.yaml"
    path.write_text(given if isinstance(given, str) else yaml.safe_dump(given))
    with pytest.raises(ValueError, match=told) as caught:
        read_plan(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml: No such file"):
        read_plan(tmp_path / "none.yaml")


def test_changes_of_parameters(tmp_path):
    toy = Toy(tmp_path)
    assert toy.plan(gate_least=5).stage("gate").parameters() == {"least": 5}
    for name, told in (("gate_most", "no parameter most; it has least"), ("gates_least", "no such parameter: gates")):
        with pytest.raises(ValueError, match=told):
            toy.plan(**{name: 5})


def test_a_key_holds_what_replies_depend_on_and_nothing_else_of_an_annotator(tmp_path):
    def key(**told):
        path = tmp_path / "plan.yaml"
        stages = [*toy("ToyFind", "ToyLoad"), {toy("ToyShout")[0]: {"mark": "writer"}}]
        path.write_text(yaml.safe_dump({"stages": stages, "annotators": {"writer": told, "other": {"model": "o"}}}))
        return read_plan(path).keys["shout"]

    url = {"url": "http://a/v1"}
    bare = key(**url)
    faster = {"url": "http://b/v1", "timeout": 9, "max_in_flight": 3, "per_minute": 5, "key_env": "KEY", "batch": 2}
    assert key(**faster, model="m") == key(**url, model="m")
    others = [{"model": "m"}, {"model": "m", "revision": "2"}, {"api": "transcriptions"}, {"settings": {"seed": 1}}]
    others += [{"structured": True}, {"call": "json:dumps"}, {"call": "json:dumps", "options": {"indent": 1}}]
    keys = [bare, *(key(**url | one) for one in others)]
    assert len(set(keys)) == len(keys)


def test_files_start_from_the_folder_of_the_plan_and_count_by_what_is_in_them(tmp_path):
    keys = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.yaml").write_text("licences: {A: {train: allow, annotations: deny, audio: deny}}")
        (tmp_path / name / "plan.yaml").write_text(
            yaml.safe_dump({"stages": [*toy("ToyFind"), {"licences": {"policy": "own.yaml"}}]})
        )
        keys.append(read_plan(tmp_path / name / "plan.yaml").keys["licences"])
    assert keys[0] == keys[1]
    with pytest.raises(ValueError, match=r"stage licences: .*none\.yaml: No such file"):
        read_plan(tmp_path / "here" / "plan.yaml", {"licences.policy": "none.yaml"})


def test_keys_change_with_a_stage_and_its_descendants(tmp_path):
    toy = Toy(tmp_path)
    keys, names = toy.plan().keys, ("find", "load", "gate", "twins", "shout", "end")
    changed = {
        change: [name for name in names if other[name] != keys[name]]
        for change, other in (
            ("find", toy.plan(find_path="others.json").keys),
            ("gate", toy.plan(gate_least=3).keys),
            ("shout", toy.plan(shout_mark="?").keys),
        )
    }
    assert changed == {"find": ["find"], "gate": ["gate"], "shout": ["shout", "end"]}
    toy.told |= {"seed": 1}
    assert all(toy.plan().keys[name] != keys[name] for name in names)
    toy.told |= {"seed": 0, "name": "other", "shards": 5}
    assert toy.plan().keys == keys
    assert toy.plan().before["end"] == ("shout", "twins")
    assert len(STAGES) == len(names)


def test_how_an_annotator_is_reached_changes_nothing_where_its_model_is_named(tmp_path):
    def keys(**told):
        stages = [{"discover": {"folder": "x"}}, "fetch", "probe", "activity", "segment", "caption"]
        plan = {"stages": stages, "annotators": {"captioner": told}}
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(plan))
        return read_plan(path).keys["caption"]

    told = keys(url="http://one/v1", model="m")
    assert told == keys(url="http://two/v1", model="m", timeout=9, max_in_flight=2, wait=0.1, key_env="KEY")
    assert told != keys(url="http://one/v1", model="n")
    assert told != keys(url="http://one/v1", model="m", settings={"top_p": 0.5})
    assert keys(url="http://one/v1") != keys(url="http://two/v1")


@pytest.mark.parametrize("name", ["demo", "talks"])
def test_plans_of_the_package_have_every_stage_in_order(name):
    names = [stage.name for stage in read_plan(name).stages]
    assert sorted(names) == sorted(set(KNOWN) - {"wanted", "video-captions"})
