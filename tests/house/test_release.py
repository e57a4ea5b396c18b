"""When a checkout is a release, and what a wheel has to hold."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests import release
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


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    """Installs and uses of ``main``, whose builds write two small files."""
    done = []

    def build(pythons, out, work):
        (out / "a.tar.gz").write_bytes(b"source")
        (out / "a.whl").write_bytes(b"wheel")
        return out / "a.tar.gz", dict.fromkeys(pythons, out / "a.whl")

    def use(python, artefact, work):
        done.append(f"{python.name} {artefact.name}")
        return "used"

    def environment(python, folder, *requirements):
        done.append(f"{python} {' '.join(requirements)}")
        folder.mkdir()
        return folder / python

    for function in (build, use, environment):
        monkeypatch.setattr(release, function.__name__, function)
    monkeypatch.setattr(release, "problems", lambda root: [])
    monkeypatch.setattr(release, "runs", lambda python: python in ("p1", "p2"))
    return done


def test_every_wheel_and_the_source_are_tried(steps, tmp_path, capsys):
    (tmp_path / "old.whl").touch()
    (tmp_path / "notes.txt").touch()
    assert release.main(["--pythons", "p1", "p2", "--torch", "torch==2.8.0", "--out", str(tmp_path)]) == 0
    clean = "torch==2.8.0 numpy"
    assert steps == [f"p1 {clean}", "p1 a.whl", "p1 a.tar.gz", f"p2 {clean}", "p2 a.whl"]
    assert not (tmp_path / "old.whl").exists()
    assert (tmp_path / "notes.txt").exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].endswith(f"Nothing was uploaded. To upload: twine upload {tmp_path}/*.tar.gz {tmp_path}/*.whl")
    assert lines[-2].split() == [hashlib.sha256(b"source").hexdigest(), str(tmp_path / "a.tar.gz")]
    assert lines[-1].split() == [hashlib.sha256(b"wheel").hexdigest(), str(tmp_path / "a.whl")]


def test_what_is_no_release_is_only_rehearsed(steps, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(release, "problems", lambda root: ["no tag"])
    assert release.main(["--pythons", "p1", "--out", str(tmp_path / "out")]) == 1
    assert steps == []
    assert not (tmp_path / "out").exists()
    assert release.main(["--pythons", "p1", "--out", str(tmp_path / "out"), "--rehearse"]) == 0
    said = capsys.readouterr()
    assert said.err == "not a release: no tag\n" * 2
    assert "not for upload" in said.out
    assert "twine" not in said.out


def test_a_python_that_is_not_here_is_said_before_anything_is_removed(steps, tmp_path, capsys, monkeypatch):
    (tmp_path / "old.whl").touch()
    assert release.main(["--pythons", "p1", "p9", "--out", str(tmp_path), "--rehearse"]) == 1
    assert capsys.readouterr().err == "error: p9 cannot be run here: name others with --pythons\n"
    assert release.main(["--out", str(tmp_path), "--rehearse"]) == 1
    assert capsys.readouterr().err.startswith("error: none of python3.10, ")
    assert steps == []
    assert (tmp_path / "old.whl").exists()


def test_what_fails_is_no_release(steps, tmp_path, capsys, monkeypatch):
    def use(*_):
        raise ReleaseFailed("installing a.whl has changed torch 2.8.0 to 2.9.0")

    monkeypatch.setattr(release, "use", use)
    assert release.main(["--pythons", "p1", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.err == "error: installing a.whl has changed torch 2.8.0 to 2.9.0\n"
    assert "upload" not in said.out
