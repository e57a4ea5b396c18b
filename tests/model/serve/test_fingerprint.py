"""What tells weights, versions and modes apart."""

from dataclasses import replace

import torch

from afn_model.serve import fingerprint
from tests.tiny import tiny


def test_weights_differ_by_any_tensor_and_by_their_configuration():
    model, _ = tiny()
    first = fingerprint.weights_digest(model)
    assert first == fingerprint.weights_digest(tiny()[0])
    assert first != fingerprint.weights_digest(tiny(seed=1)[0])
    for _, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.add_(1.0)
            assert fingerprint.weights_digest(model) != first
            parameter.sub_(1.0)
    model.config = replace(model.config, repetition_penalty=1.3)
    assert fingerprint.weights_digest(model) != first


def test_versions_types_and_modes_are_parts_of_it(monkeypatch):
    def said(model=None, **options):
        return fingerprint.fingerprint(fingerprint.facts(model or tiny()[0], weights="w", **options))

    first = said(deterministic=False)
    others = [said(deterministic=True), said(tiny()[0].bfloat16(), deterministic=False)]
    monkeypatch.setattr(torch, "__version__", "9.9")
    others.append(said(deterministic=False))
    assert len({first, *others}) == 4
    assert len(first) == len("fp_") + 12
