from pathlib import Path

import pytest

from afn_model.eval.copies.choices import mmar, mmau, mmau_pro, mmsu, muchomusic, rul
from afn_model.eval.copies.sounds import Sounds


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("write", [mmau, mmar, mmsu, mmau_pro, rul, muchomusic])
def test_the_same_seed_writes_the_same_files(write, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, Sounds(seed))
    first, second, third = (bytes_of(tmp_path / name) for name in "abc")
    assert first == second
    assert first.keys() == third.keys()
    assert first != third
    assert sum(map(len, first.values())) < 1 << 20
