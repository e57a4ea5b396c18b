"""One's own op beside ours, by file or module."""

import pytest

from bench.own import beside, function
from bench.run import measurable
from tests.bench.test_run import TINY

OPS = measurable()
SOURCE = (
    "from beside_it import EPS\n\ndef mine(x, weight):\n    return x\n\ndef rms_norm(x, weight):\n    return x * EPS\n"
)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "beside_it.py").write_text("EPS = 2\n")
    (tmp_path / "ops.py").write_text(SOURCE)
    return tmp_path / "ops.py"


def test_a_function_of_a_file(file):
    op, name, fn = function(f"{file}:mine=rms_norm", OPS)
    assert (op, name, fn(3, None)) == ("rms_norm", "mine", 3)
    assert function(f"{file}:rms_norm", OPS)[2](3, None) == 6, "named as its op"
    assert function("torch.nn.functional:rms_norm", OPS)[0] == "rms_norm", "by the name of a module"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine=rms_norm", "write FILE.py:FUNCTION=OP"),
        ("nowhere.py:mine=rms_norm", "there is no such file"),
        ("{file}:other=rms_norm", "has no function other"),
        ("{file}:mine=fft", "no workloads for fft; there are attention, "),
        ("{file}:mine", "no workloads for mine"),
    ],
)
def test_what_is_not_there_is_said(file, text, message):
    with pytest.raises(ValueError, match=message):
        function(text.format(file=file), OPS)


def test_it_is_beside_the_workloads_of_its_op_alone(file):
    (work,) = beside([TINY], [f"{file}:mine=rms_norm"], OPS)
    assert list(work.also) == ["mine"]
    (other,) = beside([TINY], [f"{file}:mine=swiglu"], OPS)
    assert other.also == {}
    (file.parent / "more.py").write_text("def torch(x): ...\n")
    with pytest.raises(ValueError, match="torch is measured under this name already"):
        beside([TINY], [f"{file.parent / 'more.py'}:torch=rms_norm"], OPS)
