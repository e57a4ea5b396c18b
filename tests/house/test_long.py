"""The list of long tests names tests that exist."""

from tests.long import DAILY, function, listed


def test_every_name_is_a_test(request):
    here = {function(item.nodeid) for item in request.session.items}
    files = {name.partition("::")[0] for name in here}
    wanted = {name for name in listed() | DAILY if name.partition("::")[0] in files}
    if len(files) > 100:  # a run of the whole suite
        assert wanted <= here, wanted - here


def test_a_case_counts_for_its_function():
    assert function("tests/a.py::test_b[x[1]-y]") == "tests/a.py::test_b"
    assert "tests/kernels/test_every_op.py::test_within_budget" not in listed()
