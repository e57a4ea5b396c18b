"""The latency protocol with a clock of its own, and a line to a real server's socket."""

import base64
import json

import numpy as np
import pytest

from afn_model.eval.latency import (
    PIECE,
    RATE,
    RealtimeLine,
    TurnEvent,
    converse,
    measure,
    percentiles,
    played_since,
    summary,
    turn_latency,
)
from tests.model.serve.serving import running, tiny_server

SIZE = round(PIECE * RATE)
LOUD = np.full(RATE, 1000, np.int16)  # a second


class Replier:
    """A line to a server with a clock: it notices the end of a turn after ``silence`` seconds without a sound, and then
    says ``reply``, (seconds from there, kind, payload) each."""

    def __init__(self, reply, silence=0.5, interrupted=None):
        self.now, self.reply, self.silence, self.interrupted = 100.0, reply, silence, interrupted
        self.coming, self.sent, self.quiet, self.replies, self.commits = [], [], 0, 0, 0

    def clock(self):
        return self.now

    def send(self, pcm):
        assert pcm.shape == (SIZE,)
        self.sent.append((self.now, pcm))
        self.quiet = 0 if pcm.any() else self.quiet + 1
        if pcm.any() and self.interrupted is not None and self.replies:
            self.coming = [(self.now + self.interrupted, "cancelled", None)]
            self.interrupted = None
        if self.quiet == round(self.silence / PIECE):
            self.begin()

    def commit(self):
        self.commits += 1
        self.begin()

    def begin(self):
        self.replies += 1
        self.coming += [(self.now + after, kind, payload) for after, kind, payload in self.reply]

    def receive(self, timeout):
        if self.coming and self.coming[0][0] <= self.now + timeout:
            at, kind, payload = self.coming.pop(0)
            self.now = max(self.now, at)
            return kind, payload
        self.now += timeout
        return None


REPLY = [
    (0.0, "speech_stopped", None),
    (0.1, "text", "se"),
    (0.25, "text", "ven"),
    (0.3, "audio", 0.2),
    (0.4, "audio", 0.2),  # in time
    (1.0, "audio", 0.5),  # 0.3 s after all has been played
    (1.1, "done", None),
]


def test_waits_count_from_the_end_of_speech():
    line = Replier(REPLY)
    pcm = np.concatenate([LOUD, np.zeros(RATE // 10, np.int16)])
    found = turn_latency(converse(line, pcm, 1.0, clock=line.clock))
    # Half a second of silence is noticed with its last piece.
    assert found.speech_stopped == pytest.approx(0.5)
    assert found.first_text == pytest.approx(0.6)
    assert found.first_audio == pytest.approx(0.8)
    assert found.done == pytest.approx(1.6)
    assert found.text_gaps == pytest.approx((0.15,))
    assert found.audio_gaps == pytest.approx((0.1, 0.6))
    assert found.stalls == pytest.approx((0.3,))
    assert found.barge_in is None
    assert found.late == pytest.approx(0.0, abs=1e-9)
    # Each piece is sent when its last sample is due, and what was said is what was sent.
    assert [at for at, _ in line.sent] == pytest.approx([100 + PIECE * (n + 1) for n in range(len(line.sent))])
    assert np.array_equal(np.concatenate([piece for _, piece in line.sent])[: len(pcm)], pcm)


def test_push_to_talk_waits_for_no_silence():
    line = Replier(REPLY)
    found = turn_latency(converse(line, LOUD, 0.5, push_to_talk=True, clock=line.clock))
    assert (line.commits, len(line.sent)) == (1, round(0.5 / PIECE))
    assert found.first_text == pytest.approx(0.1)
    with pytest.raises(ValueError, match="needs an open microphone"):
        converse(line, LOUD, 0.5, push_to_talk=True, interruption=LOUD, clock=line.clock)


LONG = [(0.0, "speech_stopped", None), (0.1, "audio", 0.5), (0.2, "audio", 4.0), (0.3, "done", None)]


@pytest.mark.parametrize(("reaction", "expected"), [(0.2, 0.2 + PIECE), (None, 3.5), (9.0, 3.5)])
def test_an_interruption_ends_what_is_heard(reaction, expected):
    line = Replier(LONG, interrupted=reaction)
    seen = converse(line, LOUD, 1.0, interruption=LOUD, after=1.0, clock=line.clock)
    found = turn_latency(seen)
    # The first piece of the interruption is there when its last sample is; without a reaction all that came is played.
    assert found.barge_in == pytest.approx(expected, abs=1e-6)
    (began,) = (one.time for one in seen if one.kind == "speech_start")
    first, *_ = (one.time for one in seen if one.kind == "audio" and one.payload == 0.5)
    assert began - first == pytest.approx(1.0, abs=PIECE)
    assert line.now < began + 9  # the second reply included, where there is one


def test_a_reply_without_an_end_and_a_late_client_are_told():
    line = Replier([(0.1, "text", "hm")])
    with pytest.raises(ValueError, match="turn 1: the reply has not ended in time"):
        measure(line, [(LOUD, 1.0)], limit=2.0, clock=line.clock)
    assert line.now == pytest.approx(103.0, abs=2 * PIECE)

    class Busy(Replier):
        def send(self, pcm):
            super().send(pcm)
            self.now += 0.5 if len(self.sent) == 3 else 0.0

    busy = Busy(REPLY)
    assert turn_latency(converse(busy, LOUD, 1.0, clock=busy.clock)).late == pytest.approx(0.5 - PIECE)


def test_a_measurement_is_named_for_what_came():
    line = Replier(REPLY)
    said = [(LOUD, 1.0)] * 4
    found, turns = measure(line, said, clock=line.clock)
    assert (found["measures"], found["turns"], len(turns)) == ("voice to voice", 3, 3)
    assert found["stalls"]["n"] == 3
    mute = Replier([one for one in REPLY if one[1] != "audio"])
    found, _ = measure(mute, said, clock=mute.clock)
    assert (found["measures"], found["first_audio"]) == ("voice to text", {"n": 0})
    assert summary([]) | {"measures": "", "turns": 0} == {name: {"n": 0} for name in found} | {
        "measures": "",
        "turns": 0,
    }


def test_percentiles_are_values_that_were_measured():
    values = [float(n) for n in range(1, 101)]
    assert percentiles(values[::-1]) == {"n": 100, "p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
    assert percentiles([3.0, 1.0])["p50"] == 1.0
    assert percentiles([3.0])["p99"] == 3.0


def test_playback_is_in_order_and_without_overlap():
    seen = [TurnEvent(1.0, "audio", 0.5), TurnEvent(1.1, "audio", 0.5), TurnEvent(3.0, "audio", 1.0)]
    assert played_since(seen, 0.9) == 0.0
    assert played_since(seen, 1.9) == pytest.approx(0.9)
    assert played_since(seen, 2.5) == 0.0  # silent
    assert played_since(seen, 3.5) == pytest.approx(2.5)
    with pytest.raises(ValueError, match="no speech_end"):
        turn_latency(seen)


class Socket:
    """A server's end: what it says, in order; a number is a silence."""

    def __init__(self, *events):
        self.events, self.told = list(events), []

    def send(self, text):
        self.told.append(json.loads(text))

    def recv(self, timeout):
        if not self.events or self.events[0] is None:
            self.events[:1] = []
            raise TimeoutError
        return json.dumps(self.events.pop(0))


def test_events_of_a_session_are_read():
    said = "conversation.item.input_audio_transcription"
    socket = Socket(
        {"type": "session.created"},
        {"type": "session.updated"},
        {"type": "input_audio_buffer.speech_started"},
        {"type": "input_audio_buffer.speech_stopped"},
        {"type": f"{said}.delta", "delta": ""},
        {"type": f"{said}.delta", "delta": "se"},
        None,
        {"type": "response.output_audio.delta", "delta": base64.b64encode(bytes(2 * RATE)).decode()},
        {"type": f"{said}.completed"},
        {"type": "response.done", "response": {"status": "cancelled"}},
        {"type": "error", "error": {"message": "too long"}},
    )
    line = RealtimeLine("ws://x", question="Which word?", socket=socket)
    assert socket.told[0]["session"]["audio"]["input"]["transcription"] == {"question": "Which word?"}
    assert [line.receive(1.0) for _ in range(6)] == [
        ("speech_stopped", None),
        ("text", "se"),
        None,
        ("audio", 1.0),
        ("done", None),
        ("cancelled", None),
    ]
    with pytest.raises(ValueError, match="the server says: too long"):
        line.receive(1.0)
    line.send(np.array([1, -2], np.int16))
    assert base64.b64decode(socket.told[1]["audio"]) == b"\x01\x00\xfe\xff"
    line.commit()
    assert socket.told[2] == {"type": "input_audio_buffer.commit"}


def test_a_real_server_replies_in_text():
    with running(tiny_server(max_new_tokens=4)) as address:
        line = RealtimeLine(address.replace("http", "ws"), push_to_talk=True)
        said = [(LOUD, 0.2)] * 2
        found, (turn,) = measure(line, said, push_to_talk=True)
        line.close()
        assert found["measures"] == "voice to text"
        assert 0 < turn.first_text <= turn.done
        with pytest.raises(ValueError, match="the session has ended"):
            line.receive(0.0)
    with pytest.raises(ValueError, match="no session"):
        RealtimeLine(address.replace("http", "ws"))
