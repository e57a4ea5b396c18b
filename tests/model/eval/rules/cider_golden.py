"""Makes cider_golden.json anew: what pycocoevalcap, with a Java, finds for the captions in it."""

import json
from pathlib import Path

PATH = Path(__file__).with_name("cider_golden.json")
MADE = "python -m tests.model.eval.rules.cider_golden, with pycocoevalcap 1.2 importable and java on the path"


def golden() -> dict:
    return json.loads(PATH.read_text("utf-8"))


def words_of(captions: list[list[str]]) -> list[list[str]]:
    """Words of captions in groups as pycocoevalcap cuts them."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    given = {n: [{"caption": caption} for caption in some] for n, some in enumerate(captions)}
    return list(PTBTokenizer().tokenize(given).values())


def scores_of(words: list[list[str]]) -> list[float]:
    """Scores of sets of words as pycocoevalcap has them: the candidate comes first in each."""
    from pycocoevalcap.cider.cider import Cider

    candidates, references = {}, {}
    for n, (first, *others) in enumerate(words):
        candidates[n], references[n] = [first], others
    return [float(score) for score in Cider().compute_score(references, candidates)[1]]


if __name__ == "__main__":
    told = golden()
    cut = words_of([one["captions"] for one in told["sets"]])
    found = zip(told["sets"], cut, scores_of(cut), strict=True)
    sets = [{"captions": one["captions"], "words": words, "score": score} for one, words, score in found]
    cut = words_of([one[:1] for one in told["texts"]])
    texts = [[text, *words] for (text, *_), words in zip(told["texts"], cut, strict=True)]
    rows = {
        name: ",\n".join(json.dumps(one, ensure_ascii=False) for one in some)
        for name, some in (("sets", sets), ("texts", texts))
    }
    made = f'"made": {json.dumps(MADE)}'
    PATH.write_text(f'{{{made},\n"sets": [\n{rows["sets"]}\n],\n"texts": [\n{rows["texts"]}\n]}}\n', "utf-8")
