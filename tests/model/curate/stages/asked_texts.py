"""Rows with captions and words as stages of texts get them, and a writer that answers by rules."""

import json
from pathlib import Path

from afn_model.curate import identity
from afn_model.curate.replies import check
from afn_model.curate.requests import AnnotationRequest, AnnotationResponse
from afn_model.curate.stage import Context
from afn_model.curate.stand_ins.rules import RULES
from afn_model.curate.stand_ins.rules.rule_input import RuleInput

CAPTIONS = ("A man speaks, then a bell is heard.", "A woman laughs loudly.")


def told(name="x", said="", captions=CAPTIONS, at=3.0):
    """A row of ten seconds for each caption; what is said takes three tenths of a second a word."""
    source, seconds = identity.of(name), 10.0 * max(1, len(captions))
    grid = [(10.0 * place, 10.0 * place + 10.0) for place in range(len(captions))]
    segments = [{"id": identity.segment_id(source, *one), "start": one[0], "end": one[1]} for one in grid]
    merged = [
        {"segment": one["id"], "text": text, "annotation": f"of {text[:7]}"}
        for one, text in zip(segments, captions, strict=True)
    ]
    words = [
        {"word": word, "start": round(at + 0.3 * place, 3), "end": round(at + 0.3 * place + 0.3, 3)}
        for place, word in enumerate(said.split())
    ]
    transcript = {"text": said, "language": "en" * bool(said), "words": words, "annotations": ["heard"] * bool(said)}
    row = {"id": identity.of("row", name), "source_id": source, "seconds": seconds, "segments": segments}
    return row | {"merged": merged, "transcript": transcript, "mined": []}


def rules():
    """A context whose writer answers by rules, and the list of what it is asked."""
    asked: list[AnnotationRequest] = []

    def writer(requests):
        asked.extend(requests)
        return [_answer(one) for one in requests]

    return Context(Path(), annotators={"writer": writer}), asked


def _answer(request):
    text = request.messages[0]["content"]
    said = RULES[request.prompt](RuleInput(text))
    data, wrong = check({"text": said if isinstance(said, str) else json.dumps(said)}, request.schema, request.language)
    return AnnotationResponse(request.result_id({"id": "rules"}), text, data, "rules", 0, 0, 0.0, wrong)
