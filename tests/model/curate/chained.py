"""A long recording's captions with the truth, chains about it with each of the stand-in's flaws, and annotators."""

from afn_model.curate.annotators import Annotator
from afn_model.curate.reply_cache import ReplyCache
from afn_model.curate.stage import Context
from afn_model.curate.stand_ins.rules import RULES
from afn_model.curate.stand_ins.rules.rule_input import RuleInput
from afn_model.curate.stand_ins.rules.think import captioned, chain, guess
from afn_model.curate.stand_ins.truth import between
from afn_model.curate.timeline import timeline_of
from tests.model.curate.stages.heard import with_captions

RANKED = ("a horn is heard", "a woman speaks", "a bell is heard", "a siren is heard")  # by when they are heard last
OTHERS = ("a dog is heard", "a man speaks", "a drum is heard")
HOW = {"model": "rules", "prompt": "p", "annotation": "c"}


def row(seconds=180.0, name="x"):
    """A row with captions of 10 seconds each."""
    pairs = [f"{RANKED[at % 4]}, then {OTHERS[at % 3]}" for at in range(int(seconds // 10) - 4)]
    return with_captions(name, [f"{text}.".capitalize() for text in (*pairs, *RANKED)]) | {"seconds": seconds}


def told(one, flaw="", number=0):
    """What a writer replies: a chain with a flaw."""
    return chain(captioned(timeline_of(one).said()), RANKED, flaw, number)


def events_of(one):
    """The truth: each event in the middle of its segment."""
    found = []
    for part in captioned(timeline_of(one).said()):
        for event in part.events:
            what, kind = event.split(" ", 1)[1].rsplit(" ", 2 if event.endswith("is heard") else 1)[0], "sound"
            kind = "word" if event.endswith("speaks") else kind
            middle = (part.start + part.end) / 2
            found.append({"kind": kind, "label": what, "voice": what, "start": middle - 1, "end": middle + 1})
    return found


class ByRule:
    """Annotators that answer by rules, and remember what they were asked."""

    def __init__(self, one, **instead):
        self.events, self.asked, self.rules = events_of(one), [], {**RULES, "blind": guess, **instead}
        self.batch = 1

    def model(self):
        return {"id": "rules", "revision": "1"}

    def ask(self, requests):
        return [self.reply(one) for one in requests]

    def reply(self, request):
        self.asked.append(request)
        content = request.messages[0]["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        text = "\n".join(part["text"] for part in parts if "text" in part)
        heard = [
            between(self.events, part["audio"]["start"], part["audio"]["end"]) for part in parts if "audio" in part
        ]
        said = self.rules[request.prompt](RuleInput(text, heard))
        if isinstance(said, Exception):
            return said
        return {"text": said, "finish": "stop"} if isinstance(said, str) else {"data": said, "finish": "stop"}


def context(out, rules, names=("writer", "listener", "blind")):
    found = {}
    for name in names:
        cache = ReplyCache(out / f"{name}.sqlite")
        cache.file.execute("PRAGMA synchronous=OFF")  # nobody pulls a plug here
        found[name] = Annotator(rules, cache, waits=(), in_flight=1)
    return Context(out, "0", found)
