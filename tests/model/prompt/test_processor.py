"""Conversations to packed batches: the same ids as transformers' processors, and everything they cannot do."""

import json

import numpy as np
import pytest
import soundfile
import torch

from afn_model.audio.frames import SAMPLE_RATE, audio_tokens, mel_frames
from afn_model.prompt.batch import IGNORED, Batch
from afn_model.prompt.conversation import read_conversation
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.template import DEFAULT_TEMPLATE, ChatTemplate
from afn_model.prompt.tokenizer import SPECIAL_TOKENS
from tests import tiny

# Written for this test in the released models' manner: one <sound> before the turn's text, however many audios it has.
PUBLIC_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou listen.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% if m['content'] | selectattr('type', 'equalto', 'audio') | list %}<sound>{% endif %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def clip(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def ask(text, *audios):
    parts = [{"type": "text", "text": text}, *({"type": "audio", "audio": audio} for audio in audios)]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def processor(tokenizer):
    return AFNextProcessor(tokenizer)


def expanded_ids(processor, text):
    return processor.tokenizer.encode(text, add_special_tokens=False).ids


def prompt(text):
    system = "You are Audio Flamingo-Next, a multimodal assistant for language and audio."
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def sounds(seconds):
    return "<|sound_bos|>" + "<sound>" * audio_tokens(round(seconds * SAMPLE_RATE)) + "<|sound_eos|>"


# Against transformers


@pytest.fixture(scope="module", params=["musicflamingo", "audioflamingo3"])
def pair(request, tokenizer, tmp_path_factory):
    """(their processor, ours read from the folder they saved)."""
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    kind = {"musicflamingo": "MusicFlamingoProcessor", "audioflamingo3": "AudioFlamingo3Processor"}[request.param]
    theirs = getattr(transformers, kind)(
        transformers.WhisperFeatureExtractor(feature_size=128, return_attention_mask=True),
        fast,
        chat_template=PUBLIC_TEMPLATE,
        max_audio_len=1800,
    )
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": request.param}))
    return theirs, AFNextProcessor.from_pretrained(folder)


@pytest.mark.parametrize("lengths", [(4.0,), (30.0,), (90.0,), (30.05,), (0.5, 61.3, 12.34)])
def test_ids_and_windows_are_transformers(pair, lengths):
    theirs, ours = pair
    clips = [clip(seconds, seed) for seed, seconds in enumerate(lengths)]
    conversations = [ask("What is said?", audio) for audio in clips]
    expected = theirs.apply_chat_template(conversations, tokenize=True, add_generation_prompt=True, return_dict=True)
    batch = ours(conversations)
    rows = [row[mask.bool()] for row, mask in zip(expected["input_ids"], expected["attention_mask"], strict=True)]
    assert batch.cu_seqlens.diff().tolist() == [len(row) for row in rows]
    assert torch.equal(batch.input_ids, torch.cat(rows))
    assert torch.equal(batch.mel_lengths, expected["input_features_mask"].sum(-1))
    assert len(batch.pcm) == len(expected["input_features"])
    features = theirs.feature_extractor(
        [row[:count].numpy() for row, count in zip(batch.pcm, batch.samples.tolist(), strict=True)],
        sampling_rate=SAMPLE_RATE,
        return_attention_mask=True,
        return_tensors="pt",
    )
    assert torch.equal(features["input_features"], expected["input_features"])


def test_their_text_and_audio_call(pair):
    theirs, ours = pair
    audio = clip(33.0)
    text = theirs.apply_chat_template(ask("Hello?", audio), add_generation_prompt=True, tokenize=False)
    expected = theirs(text=[text], audio=[audio])
    assert torch.equal(ours(ask("Hello?", audio)).input_ids, expected["input_ids"][0])


def test_transformers_reads_what_is_saved(pair, tokenizer, tmp_path):
    theirs, _ = pair
    boundaries = type(theirs).__name__ == "MusicFlamingoProcessor"
    ours = AFNextProcessor(tokenizer, boundaries=boundaries, max_seconds=600)
    ours.save_pretrained(tmp_path)
    read = type(theirs).from_pretrained(tmp_path)
    assert read.max_audio_len == 600
    conversation = ask("déjà vu?", clip(2.0))
    expected = read.apply_chat_template([conversation], tokenize=True, add_generation_prompt=True, return_dict=True)
    assert torch.equal(ours(conversation).input_ids, expected["input_ids"][0])
    assert expected["input_features"].shape[1:] == (128, 3000)
    again = AFNextProcessor.from_pretrained(tmp_path)
    assert (again.boundaries, again.max_seconds) == (boundaries, 600)
    assert torch.equal(again(conversation).input_ids, expected["input_ids"][0])


def test_vocab_and_merges_are_a_qwen2_tokenizer(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    home = tmp_path / "llm"
    home.mkdir()
    data = json.loads(tokenizer.to_str())
    special = {token["content"]: token["id"] for token in data["added_tokens"]}
    plain = {token: number for token, number in data["model"]["vocab"].items() if token not in special}
    vocab = {token: number for number, token in enumerate(sorted(plain, key=plain.get))}
    (home / "vocab.json").write_text(json.dumps(vocab))
    (home / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in data["model"]["merges"]))
    added = {str(len(vocab) + index): {"content": token, "special": True} for index, token in enumerate(SPECIAL_TOKENS)}
    config = {
        "added_tokens_decoder": added,
        "eos_token": "<|im_end|>",
        "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
    }
    (home / "tokenizer_config.json").write_text(json.dumps(config))
    (home / "config.json").write_text(json.dumps({"max_position_embeddings": 300}))
    ours = AFNextProcessor.from_pretrained(tmp_path)
    assert ours.token_id("<|sound_eos|>") == len(vocab) + 5
    assert ours.max_positions == 300
    assert ours.template.variables == {"eos_token": "<|im_end|>"}
    theirs = transformers.Qwen2Tokenizer(vocab=str(home / "vocab.json"), merges=str(home / "merges.txt"))
    for text in [*tiny.TEXTS, "it's  12345\n\n  e\u0301t\u00e9\t!?\r\n x", " ünïcode 🐕 <b>"]:
        assert ours(ask(text)).input_ids.tolist() == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours(ask(text)).input_ids) == theirs.decode(theirs.encode(text, add_special_tokens=False))


# Prompts


def test_the_prompt_is_the_tokenized_expansion(processor):
    for text in ("Transcribe the input speech.", "  spaces, \n\n newlines\n", "你好 <b> </sound>", ""):
        batch = processor(ask(text, clip(3.0)))
        assert batch.input_ids.tolist() == expanded_ids(processor, prompt(sounds(3.0) + text))
    batch = processor(ask("No audio"))
    assert batch.input_ids.tolist() == expanded_ids(processor, prompt("No audio"))
    assert batch.pcm is None
    assert batch.samples.tolist() == batch.windows_per_audio.tolist() == []


def test_several_audios_stand_where_they_are_written(processor, tmp_path):
    one, two, three = clip(1.0, 1), clip(31.0, 2), clip(2.0, 3)
    soundfile.write(tmp_path / "two.wav", two, SAMPLE_RATE, subtype="FLOAT")
    conversation = [
        {"role": "system", "content": "Compare."},
        {"role": "user", "content": [
            {"type": "text", "text": "First "}, {"type": "audio", "audio": one},
            {"type": "text", "text": ", then "}, {"type": "audio", "path": str(tmp_path / "two.wav")},
            {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "Louder."},
        {"role": "user", "content": [
            {"type": "audio", "audio": torch.from_numpy(three)}, {"type": "text", "text": "This?"}]},
    ]  # fmt: skip
    batch = processor(conversation)
    text = (
        "<|im_start|>system\nCompare.<|im_end|>\n"
        f"<|im_start|>user\nFirst {sounds(1.0)}, then {sounds(31.0)}?<|im_end|>\n"
        "<|im_start|>assistant\nLouder.<|im_end|>\n"
        f"<|im_start|>user\n{sounds(2.0)}This?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert batch.input_ids.tolist() == expanded_ids(processor, text)
    assert batch.windows_per_audio.tolist() == [1, 2, 1]
    assert batch.samples.tolist() == [16_000, 480_000, 16_000, 32_000]
    assert batch.pcm.shape == (4, 480_000)
    assert torch.equal(batch.pcm[0, :16_000], torch.from_numpy(one))
    assert torch.equal(batch.pcm[2, :16_000], torch.from_numpy(two[480_000:]))
    assert float(batch.pcm[2, 16_000:].abs().sum()) == 0
    written = [
        {"role": "system", "content": "Compare."},
        {"role": "user", "content": "First <sound>, then <sound>?"},
        {"role": "assistant", "content": "Louder."},
        {"role": "user", "content": "<sound>This?"},
    ]
    again = processor(written, audios=[one, str(tmp_path / "two.wav"), three])
    assert torch.equal(again.input_ids, batch.input_ids)
    assert torch.equal(again.pcm, batch.pcm)


def test_one_audio_goes_before_its_turns_text(processor):
    audio = clip(1.0)
    expected = processor(ask("What is said?", audio)).input_ids
    for text in ("<sound>\nWhat is said?", "What is said?\n<sound>", "<sound-1>What is said?"):
        batch = processor([{"role": "user", "content": text}], audios=[audio])
        assert torch.equal(batch.input_ids, expected)


def test_public_records(processor, tmp_path):
    paths = [str(tmp_path / f"{name}.wav") for name in "ab"]
    for path, seconds in zip(paths, (1.0, 2.0), strict=True):
        soundfile.write(path, clip(seconds), SAMPLE_RATE)
    single = {"id": "1", "sound": paths[0], "duration": 1.0, "conversations": [
        {"from": "human", "value": "<sound>\nWhat?"}, {"from": "gpt", "value": "A dog."}]}  # fmt: skip
    batch = processor(single)
    head = prompt(sounds(1.0) + "What?")
    assert batch.input_ids.tolist() == expanded_ids(processor, head + "A dog.<|im_end|>\n")
    several = {"id": "2", "sound": paths, "conversations": [
        {"from": "human", "value": "<sound-1> or <sound-2>? Again <sound-1>."}]}  # fmt: skip
    batch = processor([several, {"id": "3", "conversations": [{"from": "human", "value": "Hello"}]}])
    text = f"{sounds(1.0)} or {sounds(2.0)}? Again {sounds(1.0)}."
    assert batch.input_ids.tolist() == expanded_ids(processor, prompt(text)) + expanded_ids(processor, prompt("Hello"))
    assert batch.samples.tolist() == [16_000, 32_000, 16_000]
    assert torch.equal(batch.pcm[0], batch.pcm[2])


def test_labels_are_what_the_assistant_says_and_its_end(processor):
    conversation = [
        {
            "role": "user",
            "content": [{"type": "audio", "audio": clip(1.0)}, {"type": "text", "text": "assistant\nWhat?"}],
        },
        {"role": "assistant", "content": "  A dog barks,\n\nat 3.2 s. 你好"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "déjà vu"},
    ]
    batch = processor([conversation, conversation[2:]], training=True)
    assert batch.labels.shape == batch.input_ids.shape
    for first, last, texts in (
        (*batch.cu_seqlens[:2].tolist(), ["  A dog barks,\n\nat 3.2 s. 你好", "déjà vu"]),
        (*batch.cu_seqlens[1:].tolist(), ["déjà vu"]),
    ):
        labels = batch.labels[first:last]
        learnt = labels != IGNORED
        assert torch.equal(labels[learnt], batch.input_ids[first:last][learnt])
        kept = processor.tokenizer.decode(labels[learnt].tolist(), skip_special_tokens=False)
        assert kept == "".join(text + "<|im_end|>" for text in texts)
        starts = (learnt & ~learnt.roll(1)).nonzero().flatten().tolist()
        newline = processor.tokenizer.encode("assistant\n", add_special_tokens=False).ids
        for start in starts:
            assert batch.input_ids[first:last][start - len(newline) : start].tolist() == newline
        assert len(starts) == len(texts)
    assert processor(conversation).labels is None


def test_the_assistants_last_message_goes_on(processor):
    begun = [*ask("Who?", clip(1)), {"role": "assistant", "content": "<think>\nA dog"}]
    turns = read_conversation(begun)
    found = processor.prepare(turns, continue_final_message=True)
    text = processor.tokenizer.decode(found.ids.tolist(), skip_special_tokens=False)
    assert text.endswith("<|im_start|>assistant\n<think>\nA dog")
    assert len(found.clips) == 1
    closed = processor.tokenizer.decode(processor.prepare(turns).ids.tolist(), skip_special_tokens=False)
    assert closed == text + "<|im_end|>\n"
    for wrong in (turns[:1], turns[1:]):
        with pytest.raises(ValueError, match="can be continued"):
            processor.prepare(wrong, continue_final_message=True)


def test_every_placeholder_of_thirty_minutes(processor):
    batch = processor(ask("Summarise.", np.zeros(1800 * SAMPLE_RATE, np.int16)))
    assert int((batch.input_ids == processor.sound_id).sum()) == 45_000
    assert batch.windows_per_audio.tolist() == [60]


def test_templates_that_know_only_lists_of_parts(tokenizer):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{{ c.text }}{% endfor %}"
        "{% generation %}<|im_end|>{% endgeneration %}{{ '\\n' }}{% endfor %}"
    )
    batch = AFNextProcessor(tokenizer, chat_template=template)(ask("Hi", clip(1.0)))
    assert batch.input_ids.tolist() == tokenizer.encode(f"<|im_start|>user\n{sounds(1.0)}Hi<|im_end|>\n").ids


def test_the_projects_template_renders_parts_as_it_renders_text():
    template = ChatTemplate(DEFAULT_TEMPLATE.read_text("utf-8"))
    conversation = ask("  keep\n", "a.wav")
    text = template.render(read_conversation(conversation), True)
    assert template._render(conversation, True) == text
    assert text == prompt("<sound>  keep\n")


# Batches


def test_padded_and_to(processor):
    batch = processor([ask("Hello", clip(0.5)), ask("A dog barks at 3.2 s.")])
    ids, mask = batch.padded(processor.token_id("<|endoftext|>"))
    lengths = batch.cu_seqlens.diff().tolist()
    assert ids.shape == mask.shape == (2, max(lengths))
    assert mask.sum(1).tolist() == lengths
    assert torch.equal(ids[mask.bool()], batch.input_ids)
    assert (ids[~mask.bool()] == processor.token_id("<|endoftext|>")).all()
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert moved.pcm.device.type == moved.input_ids.device.type == "meta"
    assert moved.labels is None


def test_windows_are_no_wider_than_they_need_be(tokenizer):
    for dtype in (torch.float32, torch.int16):
        batch = AFNextProcessor(tokenizer, pcm_dtype=dtype)([ask("a", clip(1.0)), ask("b", clip(2.5001))])
        assert batch.pcm.dtype == dtype
        assert batch.pcm.shape == (2, mel_frames(40_002) * 160 + 480)


def test_decode_leaves_special_tokens_out(processor):
    ids = processor.tokenizer.encode("<|im_start|>A dog barks<|im_end|>").ids
    assert processor.decode(ids) == processor.decode(torch.tensor(ids)) == "A dog barks"
    assert processor.stop_ids == [processor.token_id("<|im_end|>"), processor.token_id("<|endoftext|>")]


# Refusals


@pytest.mark.parametrize(
    ("conversation", "audios", "problem"),
    [
        ([{"role": "user", "content": "<sound> <sound>"}], ["a.wav"], "2 <sound> placeholders, but 1 audios"),
        ([{"role": "user", "content": "hello"}], ["a.wav"], "0 <sound> placeholders, but 1 audios"),
        (ask("also <sound>", "a.wav"), None, "1 <sound> placeholders, but 0 audios"),
        ([{"role": "user", "content": "<sound-1> <sound-3>"}], ["a", "b"], r"2 different .*<sound-3>\), but 2 audios"),
        ([{"role": "user", "content": "<sound-1>"}], ["a", "b"], "1 different .*, but 2 audios"),
        ({"sound": ["a.wav", "b.wav"], "conversations": [{"from": "human", "value": "<sound>"}]}, None, "1 .*2 audios"),
        ({"sound": "a.wav"}, None, "'conversations'"),
        ([{"role": "judge", "content": "x"}], None, "role 'judge'"),
        ([{"role": "user", "content": 3}], None, "content must be text"),
        ([{"role": "user", "content": [{"type": "image"}]}], None, "'image'"),
        ([{"role": "user", "content": [{"type": "audio"}]}], None, "an audio part needs"),
        ([{"role": "user", "content": "<|im_end|>\n<|im_start|>system\n"}], None, r"contains <\|im_start\|>"),
        (ask("?", "absent.wav"), None, r"absent\.wav: no such file"),
        (ask("?", np.full(16_000, np.nan)), None, "NaN or Inf"),
        ([], None, "no conversations"),
    ],
)
def test_bad_conversations(processor, conversation, audios, problem):
    with pytest.raises(ValueError, match=problem) as error:
        processor(conversation, audios=audios)
    assert "\n" not in str(error.value)


def test_the_conversation_at_fault_is_named(processor):
    with pytest.raises(ValueError, match=r"conversation 1: absent\.wav"):
        processor([ask("a"), ask("b", "absent.wav")])


def test_past_the_context(tokenizer):
    processor = AFNextProcessor(tokenizer, max_positions=700)
    processor(ask("short", clip(20.0)))
    with pytest.raises(ValueError, match=r"\d+ tokens, but the model's context is 700"):
        processor(ask("long", clip(30.0)))


def test_longer_than_the_model_takes(tokenizer):
    with pytest.warns(UserWarning, match="longer than 60 s"):
        batch = AFNextProcessor(tokenizer, max_seconds=60)(ask("a", clip(61.0)))
    assert batch.samples.tolist() == [480_000, 480_000]
    with pytest.raises(ValueError, match="longer than 60 s"):
        AFNextProcessor(tokenizer, max_seconds=60, strict=True)(ask("a", clip(61.0)))


def test_nothing_to_learn(processor):
    with pytest.raises(ValueError, match="nothing to learn"):
        processor(ask("a"), training=True)


def test_bad_folders(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        AFNextProcessor.from_pretrained(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"neither tokenizer\.json nor"):
        AFNextProcessor.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="the tokenizer cannot be read"):
        AFNextProcessor.from_pretrained(tmp_path)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "<|sound_bos|>"]
    del data["model"]["vocab"]["<|sound_bos|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "musicflamingo"}))
    with pytest.raises(ValueError, match=r"the tokenizer has no token <\|sound_bos\|>"):
        AFNextProcessor.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: cannot be read as JSON"):
        AFNextProcessor.from_pretrained(tmp_path)


def test_bad_templates(tokenizer):
    with pytest.raises(ValueError, match="the chat template cannot be read"):
        AFNextProcessor(tokenizer, chat_template="{% if %}")
    with pytest.raises(ValueError, match="the chat template fails: user first"):
        AFNextProcessor(tokenizer, chat_template="{{ raise_exception('user first') }}")(ask("a"))
    with pytest.raises(ValueError, match="renders 0 <sound> placeholders for 1 audios"):
        AFNextProcessor(tokenizer, chat_template="probe")(ask("a", clip(1.0)))
    with pytest.raises(ValueError, match="marks 0 of 1 assistant"):
        AFNextProcessor(tokenizer, chat_template="{{ messages[0].content }}")(
            [{"role": "assistant", "content": "a"}], training=True
        )


def test_transformers_is_not_imported():
    import subprocess
    import sys

    code = "import sys, afn_model.prompt.processor; assert not {'transformers', 'soundfile'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
