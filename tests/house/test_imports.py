"""``import afn_kernels`` is light and needs nothing but torch. Each check runs in a fresh process."""

import subprocess
import sys
import textwrap

import pytest


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_imports_nothing_heavier_than_torch():
    new = run("""
        import sys, torch
        before = set(sys.modules)
        import afn_kernels
        print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
    """)
    assert new == "afn_kernels"


def test_works_without_extension_triton_and_gpu():
    chosen = run("""
        import os, sys
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        sys.modules["afn_kernels._cpu"] = None
        sys.modules["triton"] = None
        import torch, afn_kernels as ak
        x = ak.log_mel(torch.randn(1, 3200))
        assert x.shape == (1, 128, 20) and torch.isfinite(x).all()
        reason = next(row for row in ak.explain("log_mel").rows if row.impl == "cpu").reason
        assert "compiled extension is missing" in reason, reason
        print(ak.explain("log_mel").chosen)
    """)
    assert chosen == "reference"


@pytest.mark.slow
def test_import_takes_less_than_one_and_a_half_times_torch():
    code = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"
    torch_s, ours_s = (min(float(run(code.format(name))) for _ in range(3)) for name in ("torch", "afn_kernels"))
    assert ours_s < 1.5 * torch_s


def test_command_line_answers_help_without_torch():
    loaded = run("""
        import sys
        from afn_model import cli
        print("torch" in sys.modules)
    """)
    assert loaded == "False"


def test_ops_that_were_never_called_compile_into_one_graph():
    """Implementations are imported while torch.compile traces, one after another."""
    run("""
        import torch, afn_kernels as ak
        calls = lambda x, w: ak.swiglu(ak.rms_norm(x, w), ak.layer_norm(x, w, w))
        x, w = torch.randn(4, 8), torch.ones(8)
        found = torch.compile(calls, fullgraph=True, backend="eager")(x, w)
        assert torch.equal(found, calls(x, w))
    """)
