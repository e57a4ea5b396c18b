"""Every example runs as its docstring says, says what it should, and stays short."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str) -> dict:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def test_the_five_are_here():
    names = {"patch_af_next", "whisper_front_end", "rote_in_your_model", "packed_attention_training"}
    names |= {"audio_language_model"}
    assert names <= {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_and_says_how_to_run_it(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) < (105 if path.stem == "audio_language_model" else 60)
    assert f"\n    python examples/{path.name}\n" in ast.get_docstring(ast.parse(text), clean=False)


def test_one_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "examples/rote_in_your_model.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "rotations keep lengths: True" in done.stdout
    early, late = map(float, re.search(r"0 s and at 60 s: (\S+) (\S+)", done.stdout).groups())
    assert early == pytest.approx(late, abs=1e-3)


def test_the_loss_falls(capsys):
    losses = run("packed_attention_training")["main"](steps=75)
    assert sum(losses[-5:]) / 5 < 0.75 * sum(losses[:5]) / 5
    assert capsys.readouterr().out.count("loss") == 4


def test_whispers_encoder_gets_the_same(capsys):
    pytest.importorskip("transformers")
    assert run("whisper_front_end")["main"]() < 1e-5
    assert "front end as a module: [1, 80000] samples to [1, 250, 64]" in capsys.readouterr().out


def test_a_patched_model_gives_the_same_logits(capsys):
    pytest.importorskip("transformers")
    apart = run("patch_af_next")["main"]()
    said = capsys.readouterr().out
    assert apart < 1e-5
    assert re.search(r"^replaced ", said, re.M)
    assert "the same bits: True" in said


def test_a_stage_drops_what_is_loud(tmp_path, monkeypatch):
    for needed in ("blake3", "soundfile"):
        pytest.importorskip(needed)
    monkeypatch.syspath_prepend(ROOT / "examples")
    done = run("curation_stage")["main"](tmp_path)
    assert (done.stage, done.rows, done.kept, done.dropped) == ("loud", 2, 1, 1)


def test_clients_of_a_server(tmp_path, monkeypatch, capsys):
    """The program, and what gradio would call; both get the same answer."""
    pytest.importorskip("openai")
    from tests.model.serve.serving import running, tiny_server, wav

    (tmp_path / "a.wav").write_bytes(wav(1.0))
    with running(tiny_server(max_new_tokens=8)) as url:
        said = run("openai_client")["main"](f"{url}/v1", wav(1.0))
        assert said
        assert capsys.readouterr().out == f"{said}\n"
        monkeypatch.setenv("AFN_URL", f"{url}/v1")
        *_, answer = run("gradio_client")["ask"](str(tmp_path / "a.wav"), "What is to be heard, and when?")
    assert answer
    assert said.startswith(answer)
