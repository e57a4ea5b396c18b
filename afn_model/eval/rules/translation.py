"""BLEU of translations, by sacrebleu: of a whole corpus, cased and detokenised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from afn_model.eval.items import AnsweredItem
from afn_model.eval.loaders.files import UNSCORED
from afn_model.eval.score import Part, RuleError, Score, Tools, resampled


def bleu(answered: Sequence[AnsweredItem], tools: Tools, *, tok: str = "13a") -> Score:
    """Corpus BLEU. An item without an output counts as an empty translation.

    It is no ratio of sums: ``parts`` are BLEU of each item by itself, and the interval is computed from the counts of
    n-grams of drawn recordings.

    Args:
        answered: items with one reference or several.
        tools: not used.
        tok: sacrebleu's tokeniser: "13a"; "zh" for Chinese and "char" or "ja-mecab" for Japanese, which 13a would take
            as one word for each stretch between spaces; "ja-mecab" needs sacrebleu's extra of that name.
    """
    from sacrebleu.metrics.bleu import BLEU

    try:
        corpus, alone = BLEU(tokenize=tok), BLEU(tokenize=tok, effective_order=True)
    except RuntimeError:
        raise RuleError(f"BLEU with {tok} needs a tokeniser: pip install 'sacrebleu[ja]'") from None
    except KeyError:
        raise RuleError(f"tok {tok!r}: sacrebleu has no such tokeniser; use 13a, zh, char or ja-mecab") from None
    parts: list[Part | None] = [None] * len(answered)
    counts: list[list[int] | None] = [None] * len(answered)
    said, true, left_out, silent = [], [], 0, 0
    for place, one in enumerate(answered):
        if not one.item.references or one.item.extra.get(UNSCORED):
            left_out += 1
            continue
        silent += one.text is None
        said.append(" ".join((one.text or "").split()))
        true.append(one.item.references)
        found = alone.sentence_score(said[-1], list(true[-1]))
        parts[place] = (found.score, 1.0)
        counts[place] = [*found.counts, *found.totals, found.sys_len, found.ref_len]
    if not said:
        return Score(float("nan"), parts, signature=f"BLEU, tok:{tok}")
    value = corpus.corpus_score(said, [list(stream) for stream in zip_longest(*true)]).score
    n = corpus.max_ngram_order

    def of(sums: np.ndarray) -> float:
        row = [int(count) for count in sums]
        return BLEU.compute_bleu(row[:n], row[n : 2 * n], row[-2], row[-1], corpus.smooth_method).score

    low, high = np.percentile([of(sums) for sums in resampled(answered, counts)], [2.5, 97.5])
    notes = [f"{silent} items have no output and count as empty translations"] if silent else []
    notes += [f"{left_out} items left out: without a reference, or not in the official split"] if left_out else []
    signature = f"BLEU, {corpus.get_signature()}"
    return Score(value, parts, interval=(float(low), float(high)), signature=signature, notes=notes)
