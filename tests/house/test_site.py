"""The documentation's site: every public name is in its reference, every document in its navigation."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import afn_kernels as ak

ROOT = Path(__file__).parents[2]


def test_every_public_op_is_in_the_reference():
    text = (ROOT / "docs/reference/kernels.md").read_text(encoding="utf-8")
    targets = re.findall(r'^::: afn_kernels\.(?:[\w.]+\.)?(\w+)\n    options: {heading: "ak\.(\w+)"', text, re.M)
    assert all(target == heading for target, heading in targets)
    assert {heading for _, heading in targets} == {*ak.__all__, "FeatureExtractor", "ParakeetFeatureExtractor"}


def test_every_document_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    for file in (ROOT / "docs").glob("*.md"):
        assert f": {file.name}\n" in nav, file.name


@pytest.mark.parametrize("name", ["coming-from.md", "index.md"])
def test_what_other_libraries_users_are_sent_to_exists(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    for owner, attribute in re.findall(r"`ak\.(nn\.)?(\w+)", text):
        assert hasattr(ak.nn if owner else ak, attribute), attribute


@pytest.mark.slow
def test_it_builds_without_warnings(tmp_path):
    mkdocs = shutil.which("mkdocs", path=str(Path(sys.executable).parent))
    if mkdocs is None:
        pytest.skip("mkdocs is an extra, [docs]: make docs")
    done = subprocess.run(
        [mkdocs, "build", "--strict", "--quiet", "--site-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
