"""Vectors of texts: what they have in common, exact products, and neighbours in any blocks."""

import numpy as np
import pytest

from afn_model.curate import text_vectors
from afn_model.curate.text_vectors import SCALE, hashed_words, nearest, whole_numbers


def cosine(one, other):
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_texts_are_near_by_what_they_name_and_rare_words_count_more():
    dog, again, other, siren, nothing = hashed_words(
        [
            "A dog barks and a man speaks.",
            "A man is speaking while dogs bark.",
            "A man speaks, a violin plays.",
            "The siren wails.",
            "It is like that.",
        ]
    )
    assert cosine(dog, again) > 0.99
    assert 0.1 < cosine(dog, other) < 0.7
    assert abs(cosine(dog, siren)) < 0.4
    assert not nothing.any()
    rare = hashed_words(["dog man", "dog", "man", *["man siren"] * 20])
    assert cosine(rare[0], rare[1]) > cosine(rare[0], rare[2]) + 0.2


def test_products_are_exact_whatever_the_order_of_the_sums():
    rng = np.random.default_rng(0)
    vectors = whole_numbers(rng.normal(size=(50, 300)), 50)
    exact = vectors.astype(np.int64) @ vectors.astype(np.int64).T
    turned = rng.permutation(300)
    assert np.array_equal(vectors @ vectors.T, exact)
    assert np.array_equal(vectors[:, turned] @ vectors[:, turned].T, exact)
    assert np.allclose(np.sqrt(np.diag(exact)), SCALE, atol=20)
    assert not whole_numbers([[0.0, 0.0]], 1).any()


def test_neighbours_are_those_of_all_pairs(monkeypatch):
    rng = np.random.default_rng(1)
    vectors = whole_numbers(rng.integers(-1, 2, size=(60, 6)), 60)  # with many ties
    alike = vectors @ vectors.T
    wanted = [
        sorted((o for o in range(60) if o != n and alike[n, o] >= 0.5 * SCALE**2), key=lambda o, n=n: (-alike[n, o], o))
        for n in range(60)
    ]
    assert max(map(len, wanted)) > 5 > min(map(len, wanted))
    for block in (1, 60 * 7, 1 << 20):
        monkeypatch.setattr(text_vectors, "_BLOCK", block)
        assert nearest(vectors, 5, 0.5) == [one[:5] for one in wanted]
    assert nearest(vectors[:1], 5, 0.5) == [[]]


def test_what_is_no_embedding():
    for wrong in ([[1.0]], [1.0, 2.0], [[np.nan], [1.0]], [[1.0], [2.0, 3.0]], "ab"):
        with pytest.raises(ValueError, match="embedding"):
            whole_numbers(wrong, 2)
