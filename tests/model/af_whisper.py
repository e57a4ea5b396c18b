"""A small encoder with its decoder, and batches for it."""

import json
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from afn_model.afwhisper import AFWhisper
from afn_model.bootstrap.tiny import build
from afn_model.config import AudioConfig, SpeechConfig
from afn_model.prompt.processor import AFNextProcessor

AUDIO = AudioConfig(n_mels=128, width=32, layers=2, heads=4, ffn=64)
CONFIG = SpeechConfig(AUDIO, width=32, layers=2, heads=4, ffn=64, max_positions=200)


def speech_model(seed=0, **changes) -> tuple[AFWhisper, AFNextProcessor]:
    """With random weights, and the processor of the tiny whole model."""
    _, processor = build(seed)
    processor.max_positions = 2000
    config = replace(
        CONFIG,
        vocab_size=processor.tokenizer.get_vocab_size(),
        audio_token_id=processor.sound_id,
        stop_token_ids=(processor.token_id("<|im_end|>"),),
        **changes,
    )
    torch.manual_seed(seed)
    model = AFWhisper(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # so that what is heard counts
            if weight.dim() == 2 and "embed_positions" not in name:
                weight.mul_(10)
    return model, processor


def said(text, *seconds, seed=0):
    """A conversation about noises of so many seconds each, with its answer."""
    noise = torch.Generator().manual_seed(seed)
    audios = [0.1 * torch.randn(round(16_000 * length), generator=noise) for length in seconds]
    parts = [{"type": "audio", "audio": audio} for audio in audios]
    question = [*parts, {"type": "text", "text": "What word do you hear?"}]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": text}]


def whisper_folder(folder, seed=0):
    """Writes what transformers writes of a Whisper: random weights, a small tokenizer, no placeholder, no template."""
    import transformers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["he hears what she says and says what he hears"] * 4, trainer)
    told = json.loads(tokenizer.to_str())["model"]
    theirs = transformers.WhisperTokenizer(vocab=told["vocab"], merges=[tuple(pair) for pair in told["merges"]])
    languages, tasks = ["<|en|>", "<|de|>"], ["<|translate|>", "<|transcribe|>"]
    others = ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    theirs.add_tokens(["<|startoftranscript|>", *languages, *tasks, *others], special_tokens=True)
    theirs.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    ids = {token: theirs.convert_tokens_to_ids(token) for token in theirs.get_vocab()}
    start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    size: dict[str, Any] = {"d_model": 32, "vocab_size": len(ids), "num_mel_bins": 80, "max_target_positions": 40}
    for part in ("encoder", "decoder"):
        size |= {f"{part}_layers": 2, f"{part}_attention_heads": 4, f"{part}_ffn_dim": 64}
    special: dict[str, Any] = {
        "decoder_start_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
        "bos_token_id": end,
    }
    torch.manual_seed(seed)
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(**size, **special, init_std=0.3, begin_suppress_tokens=None)
    )
    model.generation_config = transformers.GenerationConfig(
        **special,
        lang_to_id={token: ids[token] for token in languages},
        task_to_id={token[2:-2]: ids[token] for token in tasks},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        is_multilingual=True,
        suppress_tokens=[ids["e"], start],
        begin_suppress_tokens=[ids["a"], end],
    )
    model.save_pretrained(folder)
