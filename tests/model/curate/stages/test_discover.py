"""Discovery: folders with side files, lists, searchers; one row for each address, none of which is absolute."""

import json

import pytest

from afn_model.curate.executors import here
from afn_model.curate.plan import Plan
from afn_model.curate.run import outcomes, run, shard_names
from afn_model.curate.stage import Context, Dropped, Kept
from afn_model.curate.stages.discover import Discover, Wanted


def found(tmp_path, **options):
    return Discover(**options).find(Context(tmp_path))


def test_a_folder_with_side_files(tmp_path):
    for name in ("b.mp3", "a/talk.FLAC", "a/.hidden.wav", "notes.txt", "c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a/talk.info.json").write_text(
        json.dumps(
            {
                "id": "dQw4w9WgXcQ",
                "extractor": "youtube",
                "title": " A talk ",
                "uploader": "Ann",
                "license": "CC BY 4.0",
            }
            | {"comments": [{"text": "nice"}, {"author": "x"}], "language": "en", "age_limit": 0, "minors": True}
        )
    )
    (tmp_path / "b.json").write_text("{broken")
    rows = found(tmp_path, folder=str(tmp_path))
    assert [row["url"] for row in rows] == ["a/talk.FLAC", "b.mp3", "c.wav"]
    about = {"youtube_id": "dQw4w9WgXcQ", "language": "en", "comments": ["nice"], "minors": True, "listed": 1}
    assert rows[0] == {
        "url": "a/talk.FLAC",
        "title": "A talk",
        "channel": "Ann",
        "licence": "CC BY 4.0",
        "about": about,
    }
    assert rows[1] == {"url": "b.mp3", "title": "", "channel": "", "licence": "", "about": {"listed": 1}}


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_list_whose_addresses_repeat(tmp_path, kind):
    rows = [
        {"url": "https://youtu.be/abcdefghijk", "title": "one"},
        {"url": "talks/./two.wav", "license": "CC0"},
        {"url": str(tmp_path / "talks/two.wav"), "title": "two", "license": "mine"},
    ]
    if kind == "jsonl":
        text = "\n\n".join(map(json.dumps, rows))
    else:
        text = "url,title,license\n" + "".join(
            f"{r['url']},{r.get('title', '')},{r.get('license', '')}\n" for r in rows
        )
    (tmp_path / f"list.{kind}").write_text(text)
    one, two = found(tmp_path, manifest=str(tmp_path / f"list.{kind}"))
    assert one["about"] == {"youtube_id": "abcdefghijk", "listed": 1}
    assert (two["url"], two["title"], two["licence"], two["about"]) == ("talks/two.wav", "two", "CC0", {"listed": 2})


@pytest.mark.parametrize(
    "line",
    [
        "{broken",
        '"text"',
        '{"title": "no address"}',
        '{"path": "/etc/passwd"}',
        '{"url": "../up.wav"}',
        '{"url": "file:///etc/x"}',
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    (tmp_path / "list.jsonl").write_text('{"path": "a.wav"}\n' + line)
    with pytest.raises(ValueError, match="line 2") as caught:
        found(tmp_path, manifest=str(tmp_path / "list.jsonl"))
    assert "\n" not in str(caught.value)


def searcher(seeds):
    return [{"url": f"https://example.org/{seed}", "title": seed} for seed in seeds]


def accepts(row):
    return {"cats": True, "dogs": False, "noise": "too loud"}[row["title"]]


def test_a_searcher_and_what_is_wanted(tmp_path):
    """Through a run: rows are counted, and ids are those of addresses."""
    here_is = "tests.model.curate.stages.test_discover"
    stages = (Discover(searcher=f"{here_is}:searcher", seeds=("cats", "dogs", "noise")), Wanted(f"{here_is}:accepts"))
    plan = Plan("p", stages, shards=2)
    run(plan, tmp_path, here)
    lines = [line for shard in shard_names(plan.shards) for line in outcomes(plan, tmp_path, "wanted", shard).lines()]
    why = [line["dropped"]["detail"] for line in lines if line.get("dropped", {}).get("reason") == "not wanted"]
    assert sorted(why) == ["", "too loud"]
    assert len(lines) == 3
    assert isinstance(Wanted(f"{here_is}:accepts").run([{"title": "cats"}], Context(tmp_path))[0], Kept)
    assert Wanted(f"{here_is}:accepts").run([{"title": "noise"}], Context(tmp_path)) == [
        Dropped("not wanted", "too loud")
    ]


def test_what_is_wrong_with_parameters(tmp_path):
    for options in ({}, {"folder": "a", "searcher": "json:loads"}):
        with pytest.raises(ValueError, match="one of"):
            Discover(**options)
    with pytest.raises(ValueError, match="no such folder"):
        found(tmp_path, folder=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="accepts"):
        Wanted("")
