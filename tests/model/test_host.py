"""Where a run or a measurement was made."""

import json
import platform

from afn_model.bootstrap import tiny_curriculum
from afn_model.host import machine, version
from bench import measure


def test_runs_and_measurements_say_where_they_were_made_in_the_same_words():
    found = machine()
    assert found["device"] == "cpu"
    assert found["python"] == platform.python_version()
    assert "gpu" not in found
    assert json.loads(json.dumps(found)) == found
    assert measure.machine is tiny_curriculum.machine is machine


def test_a_package_that_is_not_there_has_no_version():
    assert version("no-package-of-this-name") is None
