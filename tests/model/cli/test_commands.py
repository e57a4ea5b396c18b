"""The ``afn`` command where all goes well."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

import afn_kernels as ak
from afn_model import AFNext, SamplingParams, Session
from afn_model.cli import main
from afn_model.infer.pages import PAGE
from afn_model.infer.text_stream import TextStream
from afn_model.prompt.questions import CAPTION, DETAILED_CAPTION, TRANSCRIBE
from afn_model.prompt.tokenizer import make_tokenizer
from afn_model.weights.checkpoint import LAYOUTS, find_layout
from tests.tiny import STEPS, noise, record, save_tiny, without_finish

QUESTION = "What is said?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    return [record(folder / f"{seed}.flac", 1.0 + 0.7 * seed, seed) for seed in range(3)]


@pytest.fixture
def afn(capsys):
    """Runs a command line that succeeds without a word on stderr: stdout."""

    def afn(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (code, without_finish(err)) == (0, "")
        return out

    return afn


def from_python(folder, question, *files, **options):
    """The answer and its tokens, without the command line."""
    content = [{"type": "audio", "path": file} for file in files] + [{"type": "text", "text": question}]
    params = SamplingParams(**{"max_new_tokens": STEPS} | options)
    (answer,) = Session(folder).answer([[{"role": "user", "content": content}]], params)
    return answer.text, answer.prompt_tokens, answer.answer_tokens


def with_steps(*arguments):
    return [*arguments, "--max-new-tokens", STEPS]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_ask(afn, model, recordings, count):
    files = recordings[:count]
    expected, _, tokens = from_python(model, QUESTION, *files)
    assert tokens == STEPS
    assert afn(*with_steps("ask", *files, QUESTION, "--model", model)) == expected + "\n"


def test_answers_depend_on_the_recording_and_the_question(afn, model, recordings):
    asked = [(recordings[0], QUESTION), (recordings[1], QUESTION), (recordings[0], "Which sound do you hear?")]
    assert len({afn(*with_steps("ask", *words, "--model", model)) for words in asked}) == 3


def test_options_may_stand_anywhere(afn, model, recordings):
    first = afn(*with_steps("ask", recordings[0], QUESTION, "--model", model))
    assert afn("ask", recordings[0], "--model", model, "--max-new-tokens", STEPS, QUESTION) == first
    assert afn("ask", "--max-new-tokens", STEPS, "--model", model, recordings[0], QUESTION) == first


def test_ask_json(afn, model, recordings):
    files = recordings[:2]
    out = afn(*with_steps("ask", *files, QUESTION, "--model", model, "--json"))
    assert out.count("\n") == 1
    answer, prompt_tokens, answer_tokens = from_python(model, QUESTION, *files)
    found = json.loads(out)
    seconds = found.pop("seconds")
    assert found == {
        "model": str(model),
        "audio": files,
        "question": QUESTION,
        "answer": answer,
        "finish": "length",
        "tokens": {"prompt": prompt_tokens, "answer": answer_tokens},
        "together": 1,
    }
    assert list(seconds) == ["read", "load", "first_token", "total"]
    assert 0 < seconds["load"] < seconds["total"]
    assert 0 < seconds["first_token"] < seconds["total"]


def test_part_of_a_recording(afn, model, tmp_path):
    pcm = noise(2.0)
    whole, part = tmp_path / "whole.wav", tmp_path / "part.wav"
    soundfile.write(whole, pcm, 16_000)
    soundfile.write(part, pcm[8_000:24_000], 16_000)
    expected = afn(*with_steps("ask", part, QUESTION, "--model", model))
    assert afn(*with_steps("ask", whole, QUESTION, "--model", model, "--start", 0.5, "--end", 1.5)) == expected


def test_sampling_options_arrive(afn, model, recordings):
    arguments = with_steps("ask", recordings[0], QUESTION, "--model", model, "--temperature", 1.5)
    sampled = {seed: from_python(model, QUESTION, recordings[0], temperature=1.5, seed=seed)[0] for seed in (0, 1)}
    assert sampled[0] != sampled[1]
    assert all(afn(*arguments, "--seed", seed) == text + "\n" for seed, text in sampled.items())
    narrow = from_python(model, QUESTION, recordings[0], temperature=1.5, seed=0, top_p=0.3)[0]
    assert narrow != sampled[0]
    assert afn(*arguments, "--seed", 0, "--top-p", 0.3) == narrow + "\n"
    loose = from_python(model, QUESTION, recordings[0], repetition_penalty=5.0)[0]
    assert afn(*with_steps("ask", recordings[0], QUESTION, "--model", model, "--repetition-penalty", 5)) == loose + "\n"


def test_system_prompt_dtype_and_rote_matter(afn, model, tmp_path):
    # Long enough for its last frames to be turned far in the checkpoint's reading, which the paper's does not do.
    file = record(tmp_path / "long.flac", 12.0)
    arguments = with_steps("ask", file, QUESTION, "--model", model)
    plain = afn(*arguments)
    assert afn(*arguments, "--system", "Listen and answer.") == plain
    assert afn(*arguments, "--system", "Answer with one word.") != plain
    assert afn(*arguments, "--dtype", "fp32") == plain
    assert afn(*arguments, "--rote", "checkpoint") == plain
    assert afn(*arguments, "--rote", "paper") != plain
    assert afn(*arguments, "--dtype", "bf16") != ""


def test_transcribe_and_caption(afn, model, recordings):
    for command, question in (
        (["transcribe"], TRANSCRIBE),
        (["caption"], CAPTION),
        (["caption", "--detailed"], DETAILED_CAPTION),
    ):
        alone = [from_python(model, question, file)[0] for file in recordings]
        assert afn(*with_steps(*command, recordings[0], "--model", model)) == alone[0] + "\n"
        expected = "".join(f"{file}: {text}\n" for file, text in zip(recordings, alone, strict=True))
        for batch in (1, 2, 8):
            assert afn(*with_steps(*command, *recordings, "--model", model, "--batch", batch)) == expected
        lines = afn(*with_steps(*command, *recordings, "--model", model, "--json")).splitlines()
        assert [json.loads(line)["answer"] for line in lines] == alone
        assert [json.loads(line)["audio"] for line in lines] == [[file] for file in recordings]
        assert {json.loads(line)["question"] for line in lines} == {question}


def test_chat(afn, model, recordings, monkeypatch):
    def talk(*lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        return afn(*with_steps("chat", "--model", model))

    first = from_python(model, QUESTION, recordings[0])[0]
    assert talk() == ""
    assert talk(f"/audio {recordings[0]}", QUESTION) == first + "\n"
    assert talk(f"/audio {recordings[0]}", QUESTION, "", "/quit", "And then?") == first + "\n"
    # A second question sees the first; after /reset it does not.
    alone = talk("And then?")
    assert talk(f"/audio {recordings[0]}", QUESTION, "And then?") != first + "\n" + alone
    assert talk(f"/audio {recordings[0]}", QUESTION, "/reset", "And then?") == first + "\n" + alone
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION))
    assert afn(*with_steps("chat", recordings[0], "--model", model)) == first + "\n"
    both = from_python(model, QUESTION, *recordings[:2])[0]
    assert talk(f"/audio {recordings[0]}", f"/audio {recordings[1]}", QUESTION) == both + "\n"


def test_chat_errors(capsys, model, monkeypatch):
    for line, problem in (("/audio nowhere.wav", "nowhere.wav: no such file"), ("/sing", "/sing: no such command")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(line))
        assert main(["chat", "--model", str(model)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"afn: error: {problem}")
        assert err.count("\n") == 1


def test_chat_on_a_terminal_goes_on_after_an_error(capsys, model, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("/audio nowhere.wav\nWhat is said?\n"))
    assert main(["chat", "--model", str(model), "--max-new-tokens", str(STEPS)]) == 0
    out, err = capsys.readouterr()
    assert out == "> > " + from_python(model, QUESTION)[0] + "\n> "
    assert err.splitlines()[1] == "afn: error: nowhere.wav: no such file"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_convert(afn, model, recordings, tmp_path, layout):
    arguments = [*with_steps("ask", recordings[0], QUESTION), "--model"]
    expected = afn(*arguments, model)
    out = afn("convert", model, tmp_path / layout, "--layout", layout)
    parameters = sum(p.numel() for p in AFNext.from_pretrained(model).parameters())
    assert out == f"{tmp_path / layout}: {layout} layout, {parameters:,} parameters, float32\n"
    assert find_layout(tmp_path / layout) == layout
    assert afn(*arguments, tmp_path / layout) == expected
    afn("convert", tmp_path / layout, tmp_path / "back", "--layout", "transformers")
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json", "processor_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (model / name).read_bytes()


def test_convert_dtype_and_over_another(afn, model, recordings, tmp_path):
    afn("convert", model, tmp_path / "a", "--layout", "hub", "--dtype", "bf16")
    assert AFNext.from_pretrained(tmp_path / "a").dtype == torch.bfloat16
    answer = afn(*with_steps("ask", recordings[0], QUESTION, "--model", tmp_path / "a"))
    afn("convert", model, tmp_path / "b", "--layout", "hub")
    afn("convert", tmp_path / "a", tmp_path / "b", "--layout", "native", "--overwrite")
    assert find_layout(tmp_path / "b") == "native"
    assert not list((tmp_path / "b").glob("*.safetensors"))
    assert afn(*with_steps("ask", recordings[0], QUESTION, "--model", tmp_path / "b")) == answer


def test_doctor(afn):
    report = json.loads(afn("doctor", "--json"))
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"afn", "python", "torchaudio", "triton", "transformers", "soundfile", "libsndfile"} <= set(
        report["versions"]
    )
    assert report["devices"]["cpu"]["cores"] == os.cpu_count()
    assert len(report["devices"]["gpus"]) == torch.cuda.device_count()
    assert list(report["compilers"]) == ["c++", "cmake", "ninja", "nvcc"]
    assert set(report["ops"]) >= {"attention", "log_mel", "rote"}
    assert set(report["cuda_kernels"]["binaries"]) <= set(report["cuda_kernels"]["sources"]) > {"log_mel"}
    for name, op in report["ops"].items():
        assert op["chosen"] == ak.explain(name).chosen
        assert all(row["reason"] for row in op["rows"])
    lines = afn("doctor").splitlines()
    for name, op in report["ops"].items():
        assert f"  {name}: {op['chosen']}" in lines
    assert all(f"    {item['fix']}" in lines for item in report["missing"])


def test_doctor_verifies(afn, monkeypatch, capsys):
    from afn_kernels.verify.report import Report

    rows = [
        {"op": "rote", "check": "5 x 60", "impl": "cuda", "status": status, "reason": "off", "error": 1.0, "used": 2.0}
        for status in ("ok", "failed")
    ]
    monkeypatch.setattr(ak, "verify", lambda progress: Report("cpu", "toy", tuple(rows[:1])))
    assert "1 ok, 0 failed, 0 skipped" in afn("doctor", "--verify")
    assert json.loads(afn("doctor", "--verify", "--json"))["verify"]["rows"] == rows[:1]
    monkeypatch.setattr(ak, "verify", lambda progress: Report("cpu", "toy", tuple(rows)))
    assert main(["doctor", "--verify"]) == 1
    assert "cuda       failed" in capsys.readouterr().out


def test_doctor_without_extension_and_tools(afn, monkeypatch):
    from afn_model.cli import doctor

    monkeypatch.setitem(sys.modules, "afn_kernels._cpu", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: None)
    real = doctor.importlib.util.find_spec
    absent = ("matplotlib",)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name in absent else real(name))
    report = json.loads(afn("doctor", "--json"))
    assert set(report["compilers"].values()) == {None}
    assert report["extension"]["built"] is False
    assert report["extension"]["detail"].startswith("the compiled extension is missing: ")
    fixes = {item["what"]: item["fix"] for item in report["missing"]}
    checkout = Path(ak.__file__).parents[1]
    assert fixes["compiled extension"] == f"sudo apt-get install -y g++ && pip install --no-deps -e {checkout}"
    assert fixes["matplotlib"] == "pip install 'afn-kernels[demo]'"
    assert "espeakng_loader" not in fixes or real("espeakng_loader") is None


def test_demo_runs_with_its_options(afn, tmp_path, monkeypatch):
    from afn_model import demo

    called = {}
    monkeypatch.setattr(demo, "run", lambda out, **options: called.update(out=out, **options))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    options = ("--seed", 3, "--seconds", 7, "--questions", 3, "--encoder", "heard")
    lines = afn("demo", "--out", tmp_path, *options).splitlines()
    assert called == {"out": tmp_path, "seed": 3, "seconds": 7.0, "questions": 3, "encoder": "heard"}
    assert f"--model {tmp_path}" in lines[-1]


def test_text_stream_waits_for_whole_characters():
    tokenizer = make_tokenizer(["plain text"], 262)
    text = "naïve 日本語 🎧 end"
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    pieces = []
    stream = TextStream(tokenizer.decode, pieces.append)
    for token in ids:
        stream(token)
    assert "".join(pieces) == text
    assert pieces == list(text)
    stream(tokenizer.encode("é").ids[0])
    assert pieces == list(text)
    stream.close()
    assert pieces[-1] == "\N{REPLACEMENT CHARACTER}"


def test_streaming_prints_what_printing_at_the_end_does(afn, model, recordings, monkeypatch):
    arguments = with_steps("ask", recordings[0], QUESTION, "--model", model)
    plain = afn(*arguments)
    pieces = []
    monkeypatch.setattr("afn_model.cli.answering.print_piece", pieces.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert afn(*arguments) == "\n"
    assert "".join(pieces) + "\n" == plain
    assert len(pieces) > 1
    pieces.clear()
    assert afn(*arguments, "--no-stream") == plain
    assert json.loads(afn(*arguments, "--json"))["answer"] + "\n" == plain
    assert not pieces


def test_what_is_said_of_commands_without_one(capsys):
    for words, prog in (([], "afn"), (["data"], "afn data")):
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"usage: {prog} ")
        with pytest.raises(SystemExit) as done:
            main([*words, "--help"])
        assert done.value.code == 0
        assert capsys.readouterr() == (err, "")
    assert [line.split()[0] for line in err.splitlines() if line.startswith("  in") or line.startswith("  st")] == [
        "index",
        "inspect",
        "step",
        "stats",
    ]
    assert main(["data", "sing"]) == 2
    assert "'sing' (choose from" in capsys.readouterr().err


def test_version(afn):
    assert afn("--version") == f"afn {ak.__version__}\n"


def test_the_model_may_be_named_by_the_environment(afn, model, recordings, monkeypatch, capsys):
    expected = afn(*with_steps("ask", recordings[0], QUESTION, "--model", model))
    monkeypatch.setenv("AFN_MODEL", str(model))
    assert afn(*with_steps("ask", recordings[0], QUESTION)) == expected
    monkeypatch.setenv("AFN_MODEL", "nowhere")
    assert afn(*with_steps("ask", recordings[0], QUESTION, "--model", model)) == expected
    monkeypatch.setenv("AFN_MODEL", "")
    assert main(["ask", QUESTION]) == 2
    assert "required: --model" in capsys.readouterr().err
    monkeypatch.delenv("AFN_MODEL")


def test_a_later_turn_of_a_chat_computes_only_itself(afn, model, recordings, monkeypatch):
    from afn_model.infer.runner import ModelRunner

    passes, embed = [], ModelRunner._embed

    def counted(self, ids, *arguments):
        passes.append(len(ids))
        return embed(self, ids, *arguments)

    monkeypatch.setattr(ModelRunner, "_embed", counted)
    lines = f"/audio {recordings[2]}", QUESTION, "And then?", "And then?"
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    afn(*with_steps("chat", "--model", model))
    prefills = [tokens for tokens in passes if tokens > 1]
    _, prompt, _ = from_python(model, QUESTION, recordings[2])
    assert len(prefills) == 3
    assert prefills[0] == prompt
    # The turn, what is no full page, and the answer before it where its text makes other tokens than were sampled.
    assert max(prefills[1:]) < 20 + STEPS + 10 + PAGE
    assert prefills[2] < prompt


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    for command in ("demo", "ask", "transcribe", "caption", "chat", "convert", "doctor"):
        assert f"\n  {command} " in out
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0
        assert f"afn {command}" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error(model):
    command = [sys.executable, "-m", "afn_model.cli", "ask", QUESTION, "--model", model, "--max-new-tokens", "1"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    error = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 141
    assert error == b""


def test_help_and_bad_options_import_no_torch():
    code = "import sys, afn_model.cli as cli; assert cli.main(['ask']) == 2; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_the_models_packages_one_line_says_what_to_install():
    """The kernels can be installed alone; ``afn`` is there all the same."""
    run = "import sys; sys.modules['tokenizers'] = None; from afn_model.cli import main; main(['data', 'stats', 'x'])"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "afn: error: tokenizers is not installed: pip install 'afn-kernels[model]'\n"
