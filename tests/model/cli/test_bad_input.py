"""Bad input on the command line: exit code 2, one line that names the file and the problem, never a traceback."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch

from afn_model.cli import main
from tests.tiny import noise, record, save_tiny, tiny, without_finish

QUESTION = "What is said?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(capsys):
    """Runs a command line: (exit code, stdout, lines of stderr)."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, without_finish(err).splitlines()

    return run


@pytest.fixture
def refused(run):
    """The command fails with one line that holds every part."""

    def refused(arguments, *parts, expected=2):
        code, out, err = run(*arguments)
        assert code == expected
        assert out == ""
        assert len(err) == 1
        assert err[0].startswith("afn: error: ")
        for part in parts:
            assert str(part) in err[0]

    return refused


def write(path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def wav(path, samples: np.ndarray, rate: int = 16_000) -> str:
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return str(path)


def mp3(path) -> bytes:
    soundfile.write(path, noise(2.0), 16_000, format="MP3")
    return path.read_bytes()


def with_sample(value: float) -> np.ndarray:
    samples = noise(1.0)
    samples[8000] = value
    return samples


RECORDINGS = {
    "missing": (lambda path: str(path), "no such file"),
    "a directory": (lambda path: (path.mkdir(), str(path))[1], "no recording in this folder"),
    "not audio": (lambda path: write(path, b"Dear diary, " * 500), "not audio"),
    "an empty file": (lambda path: write(path, b""), "empty"),
    "zero samples": (lambda path: wav(path, np.zeros(0)), "no samples"),
    "NaN samples": (lambda path: wav(path, with_sample(np.nan)), "NaN or Inf sample at 0.500 s"),
    "Inf samples": (lambda path: wav(path, with_sample(-np.inf)), "NaN or Inf sample at 0.500 s"),
    "0.01 s": (lambda path: wav(path, noise(0.01)), "0.0100 s is too short"),
    "4 kHz": (lambda path: record(path, 1.0, rate=4_000), "4000 Hz is outside 8000 to 192000 Hz"),
    "400 kHz": (lambda path: record(path, 0.1, rate=400_000), "400000 Hz is outside"),
    "truncated wav": (lambda path: write(path, (wav(path, noise(1.0)), path.read_bytes()[:30_000])[1]), "truncated"),
}


@pytest.mark.parametrize("case", RECORDINGS)
@pytest.mark.parametrize("command", ["ask", "transcribe", "caption"])
def test_recordings(refused, model, tmp_path, command, case):
    make, problem = RECORDINGS[case]
    file = make(tmp_path / "talk.wav")
    question, expected = ([QUESTION], 2) if command == "ask" else ([], 1)
    if case == "a directory":
        expected = 2
    refused([command, file, *question, "--model", model], file, problem, expected=expected)


@pytest.mark.parametrize("damage", ["noise", "hole", "end"])
def test_corrupt_mp3(refused, model, tmp_path, damage):
    data = mp3(tmp_path / "talk.mp3")
    half = len(data) // 2
    piece = np.random.default_rng(0).bytes(3000) if damage == "noise" else bytes(3000)
    rest = b"" if damage == "end" else piece + data[half + 3000 :]
    file = write(tmp_path / "talk.mp3", data[:half] + rest)
    refused(["ask", file, QUESTION, "--model", model], file, "truncated: ", " s of 2.09 s are there")


def test_torn_mp3_is_used_with_a_warning_unless_strict(run, refused, model, tmp_path):
    data = mp3(tmp_path / "talk.mp3")
    bare = data[data.find(data[:2], 4) :]  # without the first frame, which says how many follow
    file = write(tmp_path / "talk.mp3", bare[: len(bare) * 3 // 4 + 1])
    arguments = ["ask", file, QUESTION, "--model", model, "--max-new-tokens", 1]
    code, out, err = run(*arguments)
    assert code == 0
    assert out
    assert len(err) == 1
    assert err[0].startswith("afn: warning: ")
    assert file in err[0]
    assert "last frame is incomplete" in err[0]
    refused([*arguments, "--strict"], file, "last frame is incomplete")


def test_the_bad_recording_among_good_ones_is_named(refused, model, tmp_path):
    good, bad = record(tmp_path / "good.wav", 1.0), write(tmp_path / "bad.wav", b"no")
    refused(["transcribe", good, bad, "--model", model, "--fail-fast"], bad, "not audio")
    refused(["ask", good, bad, QUESTION, "--model", model], bad, "not audio")


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (["--start", "5"], "start 5.0 s is outside the recording of 2.000 s"),
        (["--end", "5"], "end 5.0 s is outside the recording of 2.000 s"),
        (["--start", "1", "--end", "0.5"], "end 0.5 s is not after start 1.0 s"),
        (["--start=-1"], "start -1.0 s is outside"),
    ],
)
def test_parts_outside_the_recording(refused, model, tmp_path, part, problem):
    file = record(tmp_path / "talk.wav", 2.0)
    refused(["ask", file, QUESTION, "--model", model, *part], file, problem)


def test_31_minutes(run, refused, model, tmp_path):
    file = str(tmp_path / "meeting.wav")
    soundfile.write(file, np.full(31 * 60 * 8000, 1000, dtype=np.int16), 8000)
    arguments = ["ask", file, QUESTION, "--model", model, "--max-new-tokens", 1]
    refused([*arguments, "--strict"], file, "longer than 1800 s")
    # Without --strict it is cut to 30 minutes, which are more tokens than this model's context holds.
    code, out, err = run(*arguments)
    assert (code, out, len(err)) == (2, "", 2)
    assert err[0] == f"afn: warning: {file}: longer than 1800 s; the rest is left out"
    assert err[1].startswith(f"afn: error: {file}: 450")
    remedy = "; --start and --end ask about a part, --each in pieces"
    assert err[1].endswith(f"tokens, but the model's context is 4096{remedy}")


def test_longer_than_the_model_takes_is_cut_with_a_warning(run, refused, model, tmp_path):
    short = shutil.copytree(model, tmp_path / "short")
    settings = json.loads((short / "processor_config.json").read_text())
    (short / "processor_config.json").write_text(json.dumps(settings | {"max_audio_len": 1}))
    long, cut = noise(1.5), tmp_path / "cut.wav"
    file = wav(tmp_path / "talk.wav", long)
    wav(cut, long[:16_000])
    code, out, err = run("ask", file, QUESTION, "--model", short, "--max-new-tokens", 8)
    assert code == 0
    assert err == [f"afn: warning: {file}: longer than 1 s; the rest is left out"]
    assert run("ask", cut, QUESTION, "--model", short, "--max-new-tokens", 8) == (0, out, [])
    refused(["ask", file, QUESTION, "--model", short, "--strict"], file, "longer than 1 s")


def test_prompt_past_the_context(refused, model):
    refused(["ask", "What? " * 5000, "--model", model], "tokens, but the model's context is 4096")


def test_prompt_that_leaves_no_room_for_an_answer():
    model, processor = tiny()
    batch = processor([{"role": "user", "content": "What is said?"}])
    batch.input_ids = batch.input_ids[:1].repeat(4096)
    batch.cu_seqlens = torch.tensor([0, 4096], dtype=torch.int32)
    with pytest.raises(ValueError, match="conversation 0 has 4096 tokens; 1 to 4095 leave room for an answer"):
        model.generate(batch)


def test_six_channels_and_every_rate_are_fine(run, model, tmp_path):
    for rate, channels in ((8_000, 1), (44_100, 2), (48_000, 6), (192_000, 1)):
        file = record(tmp_path / "talk.wav", 0.5, rate=rate, channels=channels)
        code, out, err = run("ask", file, QUESTION, "--model", model, "--max-new-tokens", 2)
        assert (code, err) == (0, [])
        assert out.endswith("\n")


@pytest.mark.parametrize("command", [["ask", QUESTION], ["chat"], ["transcribe", "talk.wav"]])
def test_no_model_folder(refused, tmp_path, command):
    refused([*command, "--model", tmp_path / "nowhere"], tmp_path / "nowhere", "no such folder")


def test_a_folder_that_is_no_model(refused, tmp_path):
    refused(["ask", QUESTION, "--model", tmp_path], tmp_path, "tokenizer.json")
    refused(["convert", tmp_path, tmp_path / "out", "--layout", "hub"], tmp_path, "tokenizer.json")
    assert not (tmp_path / "out").exists()


def cut_weights(folder):
    file = folder / "model.safetensors"
    return write(file, file.read_bytes()[:-1000])


def garbage_weights(folder):
    return write(folder / "model.safetensors", b"\xff" * 1000)


def no_config(folder):
    (folder / "config.json").unlink()
    return str(folder)


def broken_config(folder):
    return write(folder / "config.json", b'{"model_type": "musicflam')


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return str(folder / "pytorch_model.bin")


FOLDERS = {
    "damaged shard": (cut_weights, "damaged"),
    "garbage shard": (garbage_weights, "damaged"),
    "no config": (no_config, "no config.json"),
    "broken config": (broken_config, "JSON"),
    "pickle": (pickled, "pickle"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_model_folders(refused, model, tmp_path, case):
    folder = shutil.copytree(model, tmp_path / "copy")
    change, problem = FOLDERS[case]
    file = change(folder)
    refused(["ask", QUESTION, "--model", folder], file, problem)
    refused(["convert", folder, tmp_path / "out", "--layout", "hub"], file, problem)
    assert not (tmp_path / "out").exists()


def test_a_question_that_is_not_utf8(refused, model, tmp_path):
    refused(["ask", record(tmp_path / "ok.wav", 1.0), "q\udcff", "--model", model], r"not Unicode text: 'q\udcff'")
    refused(["ask", "q", "--system", "q\udcff", "--model", model], r"not Unicode text: 'q\udcff'")
    refused(["ask", "caf\udce9.wav", "q", "--model", model], r"caf\udce9.wav: no such file")


def test_standard_input_that_is_not_utf8(refused, run, model, monkeypatch):
    def given(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    given("un café\n".encode("latin-1"))
    refused(["chat", "--model", model], r"not Unicode text: 'un caf\udce9'")
    given("What is said?\nun café\n".encode("latin-1"))
    code, out, err = run("chat", "--model", model, "--max-new-tokens", 4)
    assert (code, len(err)) == (2, 1)
    assert out == run("ask", "What is said?", "--model", model, "--max-new-tokens", 4)[1]


def test_a_file_whose_name_is_not_utf8_is_printed(run, model, tmp_path, monkeypatch):
    from afn_model.infer.answer import Answer
    from afn_model.session import Session

    said = Answer("one", 1, 1, "stop", {}, 1)
    monkeypatch.setattr(Session, "answers", lambda *_, **__: iter([(0, said), (1, said)]))
    monkeypatch.chdir(tmp_path)
    shutil.copy(record(tmp_path / "tea.wav", 0.1), "caf\udce9.wav")
    arguments = ["transcribe", "caf\udce9.wav", "tea.wav", "--model", model]
    assert run(*arguments) == (0, "caf\\udce9.wav: one\ntea.wav: one\n", [])
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, [])
    assert json.loads(out.splitlines()[0])["audio"] == ["caf\udce9.wav"]


def test_placeholders_that_do_not_match_the_audios(refused, model, tmp_path):
    _, processor = tiny()
    for text, audios, problem in (
        ("<sound> and <sound>?", 1, "2 <sound> placeholders, but 1 audios"),
        ("What?", 1, "0 <sound> placeholders, but 1 audios"),
        ("<sound-1> <sound-2>", 3, "2 different placeholders .* but 3 audios"),
    ):
        with pytest.raises(ValueError, match=problem):
            processor([{"role": "user", "content": text}], audios=[noise(1.0)] * audios)
    refused(["ask", "What is <sound>?", "--model", model], "1 <sound> placeholders, but 0 audios")


def test_placeholders_that_do_not_match_the_embeddings():
    model, processor = tiny()
    content = [{"type": "audio", "audio": noise(1.0), "sampling_rate": 16_000}, {"type": "text", "text": QUESTION}]
    batch = processor([{"role": "user", "content": content}])
    batch.input_ids[batch.input_ids == processor.sound_id] = processor.token_id("<|sound_bos|>")
    with pytest.raises(ValueError, match="0 audio placeholders in the prompt for 25 audio embeddings"):
        model.generate(batch, 1)


OPTIONS = {
    "no such command": (["sing"], "sing"),
    "no model": (["ask", QUESTION], "--model"),
    "no question": (["ask", "--model", "m"], "question"),
    "no such option": (["doctor", "--colour"], "--colour"),
    "not a number": (["ask", QUESTION, "--model", "m", "--temperature", "warm"], "warm"),
    "not positive": (["ask", QUESTION, "--model", "m", "--max-new-tokens", "0"], "'0' is not a positive whole number"),
    "no such layout": (["convert", "a", "b", "--layout", "gguf"], "gguf"),
    "no such dtype": (["ask", QUESTION, "--model", "m", "--dtype", "fp4"], "fp4"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(refused, case):
    arguments, problem = OPTIONS[case]
    refused(arguments, problem, "--help says more")


def test_sampling_out_of_range(refused, model):
    for option, values in {
        "temperature": ("-1", "nan", "inf"),
        "top-p": ("0", "1.5", "nan"),
        "repetition-penalty": ("0", "-1", "nan", "inf"),
    }.items():
        for value in values:
            refused(["ask", QUESTION, "--model", model, f"--{option}={value}"], "out of range", f"={float(value)}")


def test_a_temperature_below_what_float32_holds_is_greedy(run, model):
    arguments = ["ask", QUESTION, "--model", model, "--max-new-tokens", 8]
    for temperature in ("1e-40", "5e-324"):
        assert run(*arguments, "--temperature", temperature) == run(*arguments)


def test_scores_that_are_nan(refused, model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    weights[name].view(-1)[5] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    file = record(tmp_path / "ok.wav", 1.0)
    for arguments, code in ((["ask", QUESTION], 2), (["transcribe", file], 1)):
        problem = "the scores of token 0 are NaN or infinite: language_model.layers.1.mlp.up_proj.weight holds NaN"
        refused([*arguments, "--model", folder], problem, expected=code)


def test_a_recording_without_a_question(refused, model, tmp_path):
    file = record(tmp_path / "talk.wav", 1.0)
    refused(["ask", file, "--model", model], file, "without a question")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(refused, model):
    refused(["ask", QUESTION, "--model", model, "--device", "cuda"], "device cuda", "no GPU")


def test_debug_shows_the_traceback(run, monkeypatch, tmp_path):
    monkeypatch.setenv("AFN_DEBUG", "1")
    with pytest.raises(ValueError, match="no such folder"):
        run("ask", QUESTION, "--model", tmp_path / "nowhere")


def test_bugs_keep_their_traceback(run, monkeypatch, model):
    from afn_model.session import Session

    def broken(*_, **__):
        raise TypeError("a bug")

    monkeypatch.setattr(Session, "answer", broken)
    with pytest.raises(TypeError, match="a bug"):
        run("ask", QUESTION, "--model", model)


def test_interrupted(run, monkeypatch, model):
    from afn_model.session import Session

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "answer", interrupted)
    assert run("ask", QUESTION, "--model", model) == (130, "", [])
