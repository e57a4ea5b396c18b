"""What the tests of packages share."""

import shutil
import subprocess
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("setup.py", "pyproject.toml", "MANIFEST.in", "CMakeLists.txt", "README.md", "CHANGELOG.md", "LICENSE")
PARTS += ("NOTICE", "constraints.txt", "csrc", "afn_kernels", "afn_model", "distributed")


def copy_checkout(folder: Path) -> Path:
    """What is committed or will be: no build of the checkout can leak into a package."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        lines = files.read(name).decode().splitlines()
    return [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
