"""A module of one's own that Python finds while a file of tests runs."""

import pytest


def module(name: str, source: str):
    """A fixture of the whole file: a module of that name and source, which subprocesses find too."""

    @pytest.fixture(scope="module", autouse=True)
    def mine(tmp_path_factory):
        folder = tmp_path_factory.mktemp("mine")
        (folder / f"{name}.py").write_text(source)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(folder)
            yield

    return mine
