"""How people speak: only segments in which somebody does are asked about."""

from afn_model.curate.stages.voices import Voices
from tests.model.curate.stages.heard import context, row


def test_segments_with_speech_alone(tmp_path):
    one = row(tmp_path)
    (kept,) = Voices(least=0.6).run([one], context(tmp_path))
    assert kept.tally == {"voices": 2}  # 0.5 + 0.3 s, and 0.5 + 0.4 s
    assert [entry["segment"] for entry in kept.fields["voices"]] == [part["id"] for part in one["segments"][:2]]
    assert kept.fields["voices"][1]["text"] == "A woman speaks fast and calmly. A man speaks fast and calmly."
    (kept,) = Voices(least=0.85).run([one], context(tmp_path))
    assert [entry["segment"] for entry in kept.fields["voices"]] == [one["segments"][1]["id"]]
    (kept,) = Voices().run([one], context(tmp_path))
    assert kept.fields == {"voices": []}
    assert kept.tally == {"voices": 0}
