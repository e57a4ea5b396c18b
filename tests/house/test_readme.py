"""What README shows runs as shown, and what it links to exists."""

import re
from pathlib import Path

import pytest

from tests.tiny import record, save_tiny

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_patch_block_runs(capsys):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Qwen2Config(vocab_size=64, num_key_value_heads=1, **sizes)
    exec(compile(BLOCKS[0], "README.md", "exec"), {"model": transformers.Qwen2ForCausalLM(config)})
    assert "linear_cross_entropy" in capsys.readouterr().out


def test_kernels_block_runs(capsys):
    exec(compile(BLOCKS[1], "README.md", "exec"), {})
    assert "log_mel" in capsys.readouterr().out


def test_released_weights_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record(Path("first.wav"), 91)
    block = BLOCKS[2].replace("max_new_tokens=256", "max_new_tokens=2")
    exec(compile(block, "README.md", "exec"), {"folder": save_tiny(tmp_path / "model")})
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#][^)]*)\)", README))
def test_links_exist(link):
    assert (ROOT / link).exists()


def test_make_targets_exist():
    targets = set(re.findall(r"`make ([\w-]+)`", README)) | set(re.findall(r"^make ([\w-]+)", README, re.M))
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
