"""Tokenizer folders of strangers: read whole, or refused by the file and the field."""

import json
import warnings

import pytest
from tokenizers import Tokenizer, models

from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.tokenizer import SPECIAL_TOKENS
from tests import tiny


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture
def folder(tokenizer, tmp_path):
    AFNextProcessor(tokenizer).save_pretrained(tmp_path)
    return tmp_path


def ids(processor, text):
    return processor([{"role": "user", "content": text}]).input_ids.tolist()


@pytest.mark.parametrize("setting", ["truncation", "padding", "both"])
def test_what_a_tokenizer_was_saved_with_cuts_and_pads_no_prompt(folder, setting):
    text = "What is said? " * 30
    expected = ids(AFNextProcessor.from_pretrained(folder), text), ids(AFNextProcessor.from_pretrained(folder), "One")
    data = json.loads((folder / "tokenizer.json").read_text())
    if setting != "padding":
        data["truncation"] = {"direction": "Right", "max_length": 40, "strategy": "LongestFirst", "stride": 0}
    if setting != "truncation":
        pad = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None}
        data["padding"] = pad | {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    saved = AFNextProcessor.from_pretrained(folder)
    assert (ids(saved, text), ids(saved, "One")) == expected
    assert len(expected[0]) > 128


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("tokenizer_config.json", "[]", "expected a JSON object"),
        ("tokenizer_config.json", "null", "expected a JSON object"),
        ("processor_config.json", "3", "expected a JSON object"),
        ("config.json", "[" * 100_000 + "]" * 100_000, "cannot be read as JSON"),
        ("config.json", '{"a": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ("config.json", '{"text_config": null}', "text_config must be an object, got None"),
        ("config.json", '{"text_config": {"max_position_embeddings": "8"}}', "max_position_embeddings must be a whole"),
        ("config.json", '{"text_config": {"max_position_embeddings": 0}}', "max_position_embeddings must be a whole"),
        ("processor_config.json", '{"max_audio_len": NaN}', "max_audio_len must be a finite number above 0, got nan"),
        ("processor_config.json", '{"max_audio_len": "1800"}', "max_audio_len must be a finite number above 0"),
        ("tokenizer_config.json", '{"eos_token": 3}', "eos_token must be text"),
        ("tokenizer_config.json", '{"eos_token": {"content": null, "id": 3}, "pad_token": []}', "pad_token must be"),
        ("tokenizer_config.json", '{"eos_token": "\\ud800"}', "is not Unicode text"),
        ("chat_template.json", '{"chat_template": {"a": 1}}', "chat_template must be text"),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja: not text in UTF-8"),
        ("tokenizer.json", '{"model": {}}', "the tokenizer cannot be read"),
    ],
)
def test_files_that_are_none(folder, file, content, line):
    if file == "chat_template.json":
        (folder / "chat_template.jinja").unlink()
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=line) as error:
        AFNextProcessor.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(folder))


@pytest.mark.parametrize(
    ("added", "line"),
    [
        ({"x": {"content": "<a>"}}, "is no added token with its id"),
        ({"-1": {"content": "<a>"}}, "is no added token with its id"),
        ({"300": "<a>"}, "is no added token with its id"),
        ({"300": {"content": 3}}, "is no added token with its id"),
        ({"300": {"content": "\ud800"}}, "is not Unicode text"),
        ([1], "the added tokens must be an object"),
        ({"99999": {"content": "<a>"}}, "has id 99999, which leaves a gap"),
    ],
)
def test_added_tokens_that_are_none(tokenizer, tmp_path, added, line):
    data = json.loads(tokenizer.to_str())
    vocab = {token: number for token, number in data["model"]["vocab"].items() if token not in SPECIAL_TOKENS}
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, data["model"]["merges"])))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(ValueError, match=line):
        AFNextProcessor.from_pretrained(tmp_path)


def test_a_folder_without_a_chat_template_says_which_one_is_used(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = ids(AFNextProcessor.from_pretrained(folder), "One")
    (folder / "chat_template.jinja").unlink()
    with pytest.warns(UserWarning, match="no chat template in it; the one of Audio Flamingo Next is used"):
        assert ids(AFNextProcessor.from_pretrained(folder), "One") == expected


def test_whispers_own_folder(tmp_path):
    whisper = Tokenizer(models.BPE())
    whisper.add_special_tokens(["<|endoftext|>", "<|startoftranscript|>", "<|en|>"])
    whisper.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "whisper", "max_target_positions": 4}')
    processor = AFNextProcessor.from_pretrained(tmp_path)
    assert (processor.sound_id, processor.stop_ids) == (3, [0])
    found = processor([{"role": "user", "content": "<|en|>"}, {"role": "assistant", "content": ""}], training=True)
    assert found.input_ids.tolist() == [1, 2, 0]
    assert found.labels.tolist() == [-100, -100, 0]
    with pytest.raises(ValueError, match="5 tokens of text, but the decoder's context is 4"):
        processor([{"role": "user", "content": "<|en|>" * 4}])
    for wrong in ("system", "assistant"):
        with pytest.raises(ValueError, match="Whisper answers one question"):
            processor([{"role": wrong, "content": "a"}, {"role": "user", "content": "a"}])
    (tmp_path / "config.json").write_text('{"model_type": "whisper", "max_target_positions": "4"}')
    with pytest.raises(ValueError, match="max_target_positions must be a whole number"):
        AFNextProcessor.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ValueError, match=r"no tokenizer\.json: transformers' AutoTokenizer"):
        AFNextProcessor.from_pretrained(tmp_path)
