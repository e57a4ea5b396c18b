"""Rows with captions and words as stages of texts get them, and a writer that answers by rules."""

import json
from pathlib import Path

from afn_model.curate.replies import check
from afn_model.curate.requests import AnnotationRequest, AnnotationResponse
from afn_model.curate.stage import Context
from afn_model.curate.stand_ins.rules import RULES
from afn_model.curate.stand_ins.rules.rule_input import RuleInput
from tests.model.curate.stages.heard import with_captions

CAPTIONS = ("A man speaks, then a bell is heard.", "A woman laughs loudly.")


def told(name="x", said="", captions=CAPTIONS, at=3.0):
    """A row of ten seconds for each caption; what is said takes three tenths of a second a word."""
    words = [
        {"word": word, "start": round(at + 0.3 * place, 3), "end": round(at + 0.3 * place + 0.3, 3)}
        for place, word in enumerate(said.split())
    ]
    transcript = {"text": said, "language": "en" * bool(said), "words": words, "annotations": ["heard"] * bool(said)}
    row = with_captions(name, captions)
    return row | {"seconds": max(10.0, row["seconds"]), "transcript": transcript, "mined": []}


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
