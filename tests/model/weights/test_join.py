"""A base from a Whisper encoder and a Qwen2 language model of transformers: the same parts, and what is fresh."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM, WhisperConfig, WhisperForConditionalGeneration

from afn_model import AFNext, AFNextProcessor
from afn_model.cli import main
from afn_model.prompt.tokenizer import SPECIAL_TOKENS, make_tokenizer
from tests.budget import assert_within_budget
from tests.tiny import TEXTS, conversation, noise


def whisper(folder, width=32, mels=128):
    torch.manual_seed(1)
    sizes = {"d_model": width, "encoder_layers": 2, "decoder_layers": 1, "num_mel_bins": mels, "vocab_size": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **heads, **tokens, max_target_positions=16))
    model.save_pretrained(folder)
    return model.eval()


def qwen(folder, rows, tied=False):
    """A language model and a tokenizer of 300 tokens that has never heard of audio."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(**sizes, num_key_value_heads=1, vocab_size=rows, tie_word_embeddings=tied, eos_token_id=1)
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    raw = json.loads(make_tokenizer([*TEXTS] * 4, 300).to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if "sound" not in token["content"]]
    kept = [token for token in raw["model"]["vocab"] if "sound" not in token]
    raw["model"]["vocab"] = {token: number for number, token in enumerate(kept)}
    for token in raw["added_tokens"]:
        token["id"] = raw["model"]["vocab"][token["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return model.eval(), len(kept)


def join(tmp_path, *more):
    words = ["convert", "--join", f"encoder={tmp_path / 'whisper'}", f"language_model={tmp_path / 'qwen'}"]
    return main([*words, "--adaptor", "fresh", "--out", str(tmp_path / "base"), *more])


@pytest.mark.parametrize("rows", [320, 297])
def test_the_parts_are_those_of_the_folders(tmp_path, capsys, rows):
    heard, (told, tokens) = whisper(tmp_path / "whisper"), qwen(tmp_path / "qwen", rows)
    assert tokens == 297
    assert join(tmp_path) == 0
    assert "base: transformers layout" in capsys.readouterr().out
    model, processor = AFNext.from_pretrained(tmp_path / "base"), AFNextProcessor.from_pretrained(tmp_path / "base")
    assert model.config.text.vocab_size == max(rows, 300)
    assert [processor.token_id(token) for token in SPECIAL_TOKENS[3:]] == [297, 298, 299]
    for name, value in heard.model.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value), name
    ours, head = model.language_model.state_dict(), model.lm_head.weight
    for name, value in told.model.state_dict().items():
        kept = slice(297 if name == "embed_tokens.weight" else None)
        assert torch.equal(ours[name][kept], value[kept]), name
    assert torch.equal(head[:297], told.lm_head.weight[:297])
    assert torch.equal(model.adaptor.linear_1.bias, torch.zeros(32))
    batch = processor([{"role": "user", "content": "What is said?"}])
    with torch.no_grad():
        ours, theirs = (one(batch.input_ids[None]) for one in (model.logits, lambda ids: told(ids).logits))
        exact = told.double()(batch.input_ids[None]).logits
    assert_within_budget(ours[..., :297], theirs[..., :297], exact[..., :297])
    assert len(model.generate(processor(conversation("What is said?", noise(0.5))), 3)[0]) <= 3


def test_what_is_fresh_is_a_function_of_the_seed(tmp_path, capsys):
    whisper(tmp_path / "whisper")
    qwen(tmp_path / "qwen", 300, tied=True)
    found = []
    for seed in (0, 0, 1):
        shutil.rmtree(tmp_path / "base", ignore_errors=True)
        assert join(tmp_path, "--seed", str(seed), "--dtype", "bf16", "--layout", "hub") == 0
        found.append(load_file(tmp_path / "base" / "model.safetensors"))
    first, again, other = found
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    differ = {name for name, value in first.items() if not torch.equal(value, other[name])}
    embedding, head = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
    assert differ == {"multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_2.weight", embedding, head}
    assert {value.dtype for value in first.values()} == {torch.bfloat16}
    assert torch.equal(first[embedding][:297], other[embedding][:297])
    assert torch.equal(first[embedding][:297], first[head][:297])
    assert "already" in (join(tmp_path), capsys.readouterr().err)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_mel_bins": 80}, "num_mel_bins is 80; 128 is expected, as Whisper large-v3 has"),
        ({"encoder_layers": 3}, "tensors missing: layers.2."),
        ({"d_model": 64}, "has shape"),
        ({"encoder_attention_heads": 3}, "gives no even head dimension"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path, capsys, change, message):
    whisper(tmp_path / "whisper")
    qwen(tmp_path / "qwen", 300)
    file = tmp_path / "whisper" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    capsys.readouterr()
    assert join(tmp_path) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "base").exists()


def test_what_is_wrong_is_one_line(tmp_path, capsys):
    whisper(tmp_path / "whisper")
    shutil.copytree(tmp_path / "whisper", tmp_path / "qwen")
    for words, message in (
        ([], "neither tokenizer.json nor vocab.json"),
        (["--join", "encoder=a", "encoder=b"], "expected encoder=DIR language_model=DIR"),
        (["--join", "encoder=a", "language_model=nothing"], "no such folder"),
    ):
        assert join(tmp_path, *words) == 2
        assert message in capsys.readouterr().err
    assert main(["convert", str(tmp_path), "--layout", "hub"]) == 2
    assert "the following arguments are required: DST" in capsys.readouterr().err
