"""Ids of replies: of all that is asked, and of no path."""

from dataclasses import replace

from tests.model.curate.test_annotators import request


def test_a_path_is_no_part_of_an_id():
    def of(path, end=1.0):
        told = [{"role": "user", "content": [{"audio": {"path": path, "start": 0.0, "end": end}}]}]
        return replace(request(), messages=told).result_id({"id": "m", "revision": ""})

    assert of("recordings/a.flac") == of("/elsewhere/a.mp3")
    assert len({of("a.flac"), of("b.flac"), of("a.flac", 2.0)}) == 3
