"""The compiled extension where it is missing: said once, with the reason and with what installs it."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

import afn_kernels as ak
from afn_kernels import cpu
from afn_model.audio.resample import resample
from afn_model.data.packing import pack

CALLS = {
    "log_mel": lambda: ak.log_mel(torch.zeros(1, 320)),
    "resampling": lambda: list(resample([torch.zeros(48)], 48_000, 16_000)),
    "packing": lambda: pack([1, 2, 3], 4, seed=0),
}


@pytest.fixture
def absent(monkeypatch, tmp_path):
    """As in an installation whose build found no CMake."""
    built = tmp_path / "built.json"
    built.write_text(json.dumps({"missing": {"cpu": "cmake was not found", "cuda": ""}}))
    monkeypatch.setattr(cpu, "BUILT", built)
    monkeypatch.setattr(cpu, "_warned", False)
    monkeypatch.setitem(sys.modules, "afn_kernels._cpu", None)
    cpu._usable.cache_clear()
    yield
    cpu._usable.cache_clear()


@pytest.mark.parametrize("what", CALLS)
def test_what_runs_uncompiled_is_said_once(absent, what):
    with pytest.warns(UserWarning, match="compiled") as said:
        CALLS[what]()
    (line,) = [str(warning.message) for warning in said]
    assert line.startswith(f"{what} runs several times slower")
    assert "the compiled extension is missing: cmake was not found" in line
    assert cpu.install_command() in line
    assert "\n" not in line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in CALLS.values():
            call()


def test_a_call_that_it_would_not_run_says_nothing(absent):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ak.log_mel(torch.zeros(1, 320, dtype=torch.float64))
        ak.log_mel(torch.zeros(1, 320, requires_grad=True))
        ak.log_mel(torch.zeros(1, 320), impl="reference")
        assert "cmake was not found" in str(ak.explain("log_mel", torch.zeros(1, 320)))
    with pytest.raises(ValueError, match="impl='cpu' cannot run this call: the compiled extension is missing: cmake"):
        ak.log_mel(torch.zeros(1, 320), impl="cpu")


@pytest.mark.slow
def test_a_compiled_graph_says_it_too(absent):
    torch.compiler.reset()
    with pytest.warns(UserWarning, match="log_mel runs several times slower"):
        torch.compile(ak.log_mel, backend="eager", fullgraph=True)(torch.zeros(1, 320))


@pytest.mark.skipif(bool(cpu.available()), reason=cpu.available() or "built")
def test_without_inference_mode_bits_are_those_of_a_pass_with_a_gradient():
    q, k, v = torch.randn(3, 5, 2, 16)
    caches, where = torch.zeros(2, 5, 2, 16), {"positions": torch.arange(5.0), "inv_freq": torch.rand(8)}
    calls = {
        "rms_norm": {"x": q, "weight": torch.rand(16)},
        "rotary": {"q": q, "k": k, **where},
    }
    written = calls["rotary"] | {"v": v, "k_cache": caches[0], "v_cache": caches[1], "slots": torch.arange(5)}
    for op, call in calls.items():
        with torch.no_grad():
            assert ak.explain(op, **call).chosen == "reference"
        with torch.inference_mode():
            assert ak.explain(op, **call).chosen == "cpu"
    with torch.no_grad():
        assert ak.explain("rotary", **written).chosen == "cpu"


class Origin:
    """Metadata of an installed distribution."""

    version = "1.2"

    def __init__(self, url: str, vcs_info: dict | None = None):
        self.origin = {"url": url, **({"vcs_info": vcs_info} if vcs_info else {})} if url else None

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return json.dumps(self.origin) if self.origin else None


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        ([""], "afn-kernels==1.2"),
        (["file:///there/afn_kernels-1.2-cp310-cp310-linux_x86_64.whl"], "afn-kernels==1.2"),
        (["file:///there/afn_kernels-1.2.tar.gz"], "/there/afn_kernels-1.2.tar.gz"),
        (["file:///my%20code/afn"], "'/my code/afn'"),
        (["https://example.org/afn", {"vcs": "git", "commit_id": "12ab"}], "git+https://example.org/afn@12ab"),
    ],
)
def test_the_command_fits_what_was_installed(monkeypatch, origin, source):
    monkeypatch.setattr(cpu, "checkout", lambda: None)
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Origin(*origin))
    again = "pip install --force-reinstall --no-deps --no-cache-dir --no-binary afn-kernels"
    assert cpu.install_command() == f"{again} {source}"


def test_the_command_of_a_checkout():
    assert cpu.install_command() == f"pip install --no-deps -e {Path(ak.__file__).parents[1]}"


@pytest.mark.parametrize("text", ["", "[]", '{"missing": {}}', '{"missing": null}'])
def test_a_record_of_the_build_that_is_not_there(monkeypatch, tmp_path, text):
    monkeypatch.setattr(cpu, "BUILT", tmp_path / "built.json")
    assert cpu.not_built("cpu") == ""
    cpu.BUILT.write_text(text)
    assert cpu.not_built("cpu") == ""
