"""Answers to the records of a corpus."""

from afn_model.eval.heldout import answer
from tests.model.infer.test_generate import asked
from tests.model.tiny_model import noise, record, tiny


def test_the_last_question_of_each_record_is_answered_greedily(tmp_path):
    model, processor = tiny()
    records, expected = [], []
    for seed, seconds in enumerate((1.2, 0.4, 0.8)):
        record(tmp_path / f"{seed}.wav", seconds, seed)
        talk = [("human", "<sound>\nWhat is said?"), ("gpt", "one"), ("human", "And then?"), ("gpt", "two")]
        turns = [{"from": who, "value": text} for who, text in talk]
        records.append({"id": str(seed), "sound": f"{seed}.wav", "conversations": turns})
        told = [*asked("What is said?", noise(seconds, seed)), {"role": "assistant", "content": "one"}]
        (tokens,) = model.generate(processor([*told, {"role": "user", "content": "And then?"}]), 8)
        expected.append(processor.decode(tokens))
    assert len(set(expected)) == 3
    for batch_size in (1, 2, 32):
        assert answer(model, processor, records, tmp_path, max_new_tokens=8, batch_size=batch_size) == expected
