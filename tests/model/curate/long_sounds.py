"""A long recording of sounds, and what questions about it are lost for."""

from afn_model.curate.timeline import Moment, Timeline

SOUNDS = ("bell", "siren", "dog", "rain", "clock", "engine", "thunder", "alarm", "bird", "flute", "guitar", "clapping")
CAUGHT = {
    "past the end": "evidence outside of the recording",
    "backwards": "evidence outside of the recording",
    "an option twice": "options twice",
    "a number": "options of different kinds",
    "a long option": "options of different lengths",
    "tells the answer": "the question tells the answer",
    "evidence elsewhere": "the evidence does not have the answer",
    "tells of captions": "it tells of captions",
    "heard again": "a needle that is heard again",
    "two places": "a needle in several places",
    "right too": "a wrong option is right too",
    "turned round": "an order that the evidence does not have",
    "opposite": "a question for the opposite order",
    "one thing": "an order of too few things or too many",
    "nameless": "the question does not name what the evidence has",
    "the whole": "a scene that is the whole recording",
    "two spans": "a scene of several spans",
    "other times": "a scene at other times than the evidence",
    "no times": "a scene that the question does not name",
}


def sounds(more=""):
    """Each sound once, the first one twice, and two at a time in one part."""
    lines = [f"A {sound} is heard.{more}" for sound in (*SOUNDS, SOUNDS[0])]
    lines[3] = f"A man speaks, then a rain is heard, then a siren is heard.{more}"
    moments = [Moment(10.0 * at, 10.0 * at + 10, line) for at, line in enumerate(lines)]
    return Timeline(tuple(moments), (10.0 * len(lines),))
