import pytest

from afn_model.eval.copies.sounds import Sounds
from afn_model.eval.copies.voices import cmm, librisqa, voicebench
from tests.model.eval.copies.test_choices import bytes_of


@pytest.mark.parametrize(
    ("write", "options"),
    [(cmm, {}), (voicebench, {"subset": "mmsu"}), (voicebench, {"subset": "advbench"}), (librisqa, {"part": 2})],
)
def test_the_same_seed_writes_the_same_files(write, options, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, Sounds(seed), **options)
    first, second, third = (bytes_of(tmp_path / name) for name in "abc")
    assert first == second
    assert first.keys() == third.keys()
    assert first != third
    assert sum(map(len, first.values())) < 2 << 20
