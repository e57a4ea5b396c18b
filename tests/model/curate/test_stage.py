"""What a stage is: its fields are its parameters."""

from tests.model.curate.toy import ToyGate, ToyLoad, ToyShout


def test_parameters_are_the_fields_alone():
    assert ToyGate(least=3).parameters() == {"least": 3}
    assert ToyLoad().parameters() == {}
    assert ToyShout("?") != ToyShout("!")
    assert ToyGate().depends() == {}
