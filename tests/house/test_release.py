"""When a checkout is a release, and what a wheel has to hold."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.release import ReleaseFailed, Wheel, oldest_torch, problems

CHANGELOG = "# Changelog\n\n## Unreleased\n{}\n## 0.2.0 (2030-01-31)\n{}\n## 0.1.0\n\n- First.\n"


def git(root: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def released(tmp_path) -> Path:
    """A checkout of 0.2.0 with its tag."""
    (tmp_path / "afn_kernels").mkdir()
    (tmp_path / "afn_kernels" / "__init__.py").write_text('"""Kernels."""\n\n__version__ = "0.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG.format("", "\n- New.\n"))
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    git(tmp_path, "tag", "v0.2.0")
    return tmp_path


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "x")


def test_a_release(released):
    assert problems(released) == []


def test_what_is_not_committed(released):
    (released / "new.py").touch()
    assert problems(released) == ["1 files are not committed: git status"]


def test_tags(released):
    (released / "new.py").touch()
    commit(released)
    assert problems(released) == ["the tag v0.2.0 is at another commit"]
    git(released, "tag", "-d", "v0.2.0")
    assert problems(released) == ["no tag v0.2.0: git tag v0.2.0"]


@pytest.mark.parametrize(
    ("changelog", "line"),
    [
        (CHANGELOG.format("\n- Newer.\n", "\n- New.\n"), "there are entries under 'Unreleased'"),
        (CHANGELOG.format("", ""), "the section '0.2.0 (2030-01-31)' is empty"),
        (CHANGELOG.replace("0.2.0", "0.3.0").format("", "- New.\n"), "the newest section is '0.3.0 (2030-01-31)', not"),
        ("# Changelog\n\n## Unreleased\n", "the newest section is 'Unreleased', not '0.2.0'"),
    ],
)
def test_the_changelog(released, changelog, line):
    (released / "CHANGELOG.md").write_text(changelog)
    commit(released)
    git(released, "tag", "-f", "v0.2.0")
    (found,) = problems(released)
    assert line in found


def wheel(folder: Path, *names: str) -> Wheel:
    file = folder / "afn_kernels-1-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return Wheel.look(file)


def test_what_a_wheel_has_to_hold(tmp_path):
    extension = "afn_kernels/_cpu.cpython-310-x86_64-linux-gnu.so"
    kernels = ["afn_kernels/_binaries/cuda/a.cu", "afn_kernels/_binaries/cuda/b.cu", "afn_kernels/_binaries/b.fatbin"]
    good = wheel(tmp_path, extension, *kernels, "afn_kernels/cpu.py")
    good.check()
    assert str(good).endswith("compiled CPU kernels, 1 of 2 CUDA kernels as machine code")
    with pytest.raises(ReleaseFailed, match="has no compiled CPU kernels"):
        wheel(tmp_path, *kernels, "afn_kernels/cpu.py").check()
    with pytest.raises(ReleaseFailed, match=r"carries libgomp-a1.so.1: a second copy"):
        wheel(tmp_path, extension, "afn_kernels.libs/libgomp-a1.so.1").check()


def test_the_oldest_torch_is_the_declared_one():
    assert oldest_torch().startswith("torch==2.")
