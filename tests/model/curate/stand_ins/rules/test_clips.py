"""What the rules take from captions, and how often they go wrong."""

from afn_model.curate.stand_ins.rules.clips import events_of, informative, skill_questions
from afn_model.curate.stand_ins.rules.rule_input import RuleInput


def test_events_of_a_caption():
    # Stems: a bell is "bel".
    assert events_of("A bell is heard, then a dog is heard, while a siren is heard.") == (
        ["bel", "dog", "siren"],
        {"dog", "siren"},
    )
    merged = (
        'A man speaks, then a bell is heard, then a man speaks. A man speaks fast and calmly. The words are "a bell".'
    )
    assert events_of(merged) == (["man speak", "bel"], set())
    assert events_of("There is silence, and nothing else is heard.") == ([], set())


def test_about_one_part_in_eight_is_flawed():
    lines = [
        f"{n}. 0.0 to 10.0 s, speech 0.0 s, music 2.0 s: A bell is heard, while a dog is heard." for n in range(1, 11)
    ]
    wrong = 0
    for number in range(40):
        text = "\n".join([*lines, str(number)])
        assert informative(RuleInput(text)) == informative(RuleInput(text))
        parts = informative(RuleInput(text))["parts"]
        good = {"events": 2, "overlapping": 2, "mix": ["music", "sound"], "score": 6}
        sound = [one["part"] for one in parts if one == {"part": one["part"], **good}]
        wrong += 10 - sum(sound.count(one) == 1 for one in range(1, 11))
    assert 30 < wrong < 70


def test_questions_by_skill():
    text = "0.0 to 10.0 s: A bell is heard.\n10.0 to 20.0 s: A dog is heard, then a bell is heard.\nSkill: {}\n{}"

    def asked(skill, number=0):
        (one,) = skill_questions(RuleInput(text.format(skill, number)))["questions"]
        return one["answer"], [(span["start"], span["end"]) for span in one["evidence"]]

    several = {
        name: [asked(name, number) for number in range(60)] for name in ("counting", "temporal_order", "sarcasm")
    }
    most = {name: max(set(map(str, found)), key=list(map(str, found)).count) for name, found in several.items()}
    assert most["temporal_order"] == str(("a bell, then a dog", [(0.0, 10.0), (10.0, 20.0)]))
    assert most["counting"] in (str(("two", [(0.0, 10.0), (10.0, 20.0)])), str(("one", [(10.0, 20.0)])))
    assert "thunderstorm" not in most["sarcasm"]
    for name, found in several.items():
        assert 0 < sum(str(one) != most[name] for one in found) < 45
    one = "0.0 to 10.0 s: A bell is heard.\nSkill: temporal_order\n"
    assert skill_questions(RuleInput(one)) == {"questions": []}
