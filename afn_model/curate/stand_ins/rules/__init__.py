"""Rules by the name of the prompt: they answer from the truth, or from what a request says. A file for each group."""

from __future__ import annotations

from afn_model.curate.stand_ins.rules import captions, clips, long_questions, pools, safety, talkers, think
from afn_model.curate.stand_ins.rules.rule_input import Rule

RULES: dict[str, Rule] = {
    **captions.RULES,
    **clips.RULES,
    **long_questions.RULES,
    **pools.RULES,
    **safety.RULES,
    **talkers.RULES,
    **think.RULES,
}
