"""Checkpoint folders: what is refused and how it is named, what a save leaves behind, how much memory a load takes."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file

from afn_model import AFNext
from afn_model.config import ModelConfig, RoteConfig
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.tokenizer import make_tokenizer
from afn_model.weights import checkpoint
from afn_model.weights.checkpoint import LAYOUTS, find_layout
from tests import tiny

CONFIG = tiny.config()
# Where each layout keeps the head, and the names of that tensor.
HEAD = {
    "transformers": ("model.safetensors", "lm_head.weight"),
    "hub": ("model.safetensors", "language_model.lm_head.weight"),
    "native": ("llm/model.safetensors", "lm_head.weight"),
}


def make(seed: int = 0, config: ModelConfig = CONFIG) -> AFNext:
    torch.manual_seed(seed)
    return AFNext(config)


def same(a: AFNext, b: AFNext) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.equal(x, y) for (m, x), (n, y) in pairs)


def weight_files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors*")}


@pytest.fixture
def folder(tmp_path):
    make().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(params=LAYOUTS)
def any_layout(request, tmp_path):
    make().save_pretrained(tmp_path / "model", layout=request.param)
    file, key = HEAD[request.param]
    return tmp_path / "model", tmp_path / "model" / file, key


def refused(folder, *parts: str) -> None:
    """Loading fails with one line that holds every part."""
    with pytest.raises(ValueError) as error:
        AFNext.from_pretrained(folder)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def edit_weights(file, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_config(folder, change) -> None:
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))


def test_no_folder_and_no_weights(tmp_path, folder):
    refused(tmp_path / "nowhere", "nowhere", "no such folder")
    refused(folder / "config.json", "config.json", "no such folder")
    (folder / "model.safetensors").unlink()
    refused(folder, str(folder), "no safetensors weights")


@pytest.mark.parametrize("kept", [0, 4, 200, -1, -1000])
def test_truncated_shard(any_layout, kept):
    folder, file, _ = any_layout
    file.write_bytes(file.read_bytes()[:kept])
    refused(folder, str(file), "damaged")


@pytest.mark.parametrize(
    "header", [b"\xff" * 8, b"\x00\x00\x10\x00\x00\x00\x00\x00", b"PK\x03\x04\x00\x00\x00\x00", bytes(8)]
)
def test_garbage_header(any_layout, header):
    folder, file, _ = any_layout
    file.write_bytes(header + file.read_bytes()[8:])
    refused(folder, str(file), "damaged")


def test_header_that_is_not_json(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:40] = os.urandom(32)
    file.write_bytes(data)
    refused(folder, str(file), "damaged")


def test_missing_tensor(any_layout):
    folder, file, key = any_layout
    edit_weights(file, lambda tensors: tensors.pop(key))
    refused(folder, str(folder), "1 tensors missing", "lm_head.weight")


def test_missing_part_of_the_native_layout(tmp_path):
    make().save_pretrained(tmp_path, layout="native")
    shutil.rmtree(tmp_path / "sound_mm_projector")
    refused(tmp_path, "sound_mm_projector", "needs this folder")
    (tmp_path / "sound_mm_projector").mkdir()
    refused(tmp_path, "sound_mm_projector", "no safetensors weights")


def test_unexpected_tensor(any_layout):
    folder, file, _ = any_layout
    edit_weights(file, lambda tensors: tensors.update({"visual.proj.weight": torch.zeros(3)}))
    refused(folder, str(folder), "1 tensors unexpected", "visual.proj.weight")


def test_many_missing_tensors_are_counted_not_listed(folder):
    edit_weights(folder / "model.safetensors", lambda t: [t.pop(key) for key in list(t) if "audio_tower" in key])
    with pytest.raises(ValueError, match=r"\d\d tensors missing: .* and \d+ more$") as error:
        AFNext.from_pretrained(folder)
    assert len(str(error.value)) < 300


def test_misshaped_tensor(any_layout):
    folder, file, key = any_layout
    edit_weights(file, lambda tensors: tensors.update({key: torch.zeros(300, 31)}))
    refused(folder, str(file), key, "(300, 31)", "(300, 32)")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.int8, "I8"),
        (torch.int64, "I64"),
        (torch.uint8, "U8"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
    ],
)
def test_weights_that_are_no_floating_point_or_quantised(folder, dtype, name):
    change = {"model.language_model.norm.weight": torch.ones(32).to(dtype)}
    edit_weights(folder / "model.safetensors", lambda tensors: tensors.update(change))
    refused(folder, "model.safetensors", f"model.language_model.norm.weight is {name}, expected one of F32, BF16, F16")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pickles(tmp_path, layout):
    make().save_pretrained(tmp_path, layout=layout)
    for file in tmp_path.rglob("*.safetensors"):
        file.rename(file.with_name("pytorch_model.bin"))
    refused(tmp_path, "pytorch_model.bin", "pickle", "safetensors")


def test_wrong_vocabulary(folder):
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    make_tokenizer([text] * 3, 400).save(str(folder / "tokenizer.json"))
    tokens = AFNextProcessor.from_pretrained(folder).tokenizer.get_vocab_size()
    assert tokens > CONFIG.text.vocab_size
    refused(folder, "tokenizer.json", "wrong vocabulary", f"{tokens} tokens", "300")


def test_tokenizer_of_another_model(folder):
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": []}))
    refused(folder, "tokenizer.json", "no <sound> token")


def test_config_that_is_missing_or_not_json(folder):
    (folder / "config.json").write_text('{"model_type": ')
    refused(folder, "config.json", "cannot be read as JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, "config.json", "JSON object")
    (folder / "config.json").unlink()
    refused(folder, str(folder), "no config.json")


UNSUPPORTED = {
    "rope scaling": (lambda text: text["rope_parameters"].update(rope_type="yarn", factor=4.0), "rope scaling"),
    "older rope scaling": (lambda text: text.update(rope_scaling={"type": "linear", "factor": 2.0}), "rope scaling"),
    "tied embeddings": (lambda text: text.update(tie_word_embeddings=True), "tie_word_embeddings is True"),
    "sliding window": (lambda text: text.update(use_sliding_window=True), "use_sliding_window is True"),
    "head dim": (lambda text: text.update(head_dim=8), "head_dim 8"),
    "no width": (lambda text: text.pop("hidden_size"), "hidden_size"),
    "heads": (lambda text: text.update(num_attention_heads=5), "5 heads"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_config_of_an_unsupported_model(folder, case):
    change, problem = UNSUPPORTED[case]
    edit_config(folder, lambda raw: change(raw["text_config"]))
    refused(folder, "config.json", problem)


def test_another_layout_name(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint layout 'gguf'; there are transformers, hub, native"):
        make().save_pretrained(tmp_path / "model", layout="gguf")
    assert not (tmp_path / "model").exists()


def test_saving_over_a_file(tmp_path):
    (tmp_path / "model").write_text("notes")
    with pytest.raises(ValueError, match=r"model: is a file"):
        make().save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "notes"


def test_stored_tables_are_ignored(tmp_path):
    model = make()
    for layout, prefix in (("hub", "audio_tower."), ("native", "")):
        folder = tmp_path / layout
        model.save_pretrained(folder, layout=layout)
        file = folder / ("sound_tower" if layout == "native" else "") / "model.safetensors"
        edit_weights(file, lambda tensors, prefix=prefix: tensors.update({prefix + "pos_emb.freqs": torch.zeros(7)}))
        assert same(AFNext.from_pretrained(folder), model)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(tmp_path, stored, wanted):
    model = make().to(stored)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(stored).removeprefix("torch.")
    loaded = AFNext.from_pretrained(tmp_path, dtype=wanted)
    assert {p.dtype for p in loaded.parameters()} == {wanted or stored}
    assert same(loaded, model.to(wanted or stored))


def test_mixed_dtypes_become_the_heads(folder):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"].bfloat16()

    edit_weights(folder / "model.safetensors", change)
    assert {p.dtype for p in AFNext.from_pretrained(folder).parameters()} == {torch.bfloat16}


def test_a_loaded_model_can_be_trained_and_saved_over_itself(folder):
    model = AFNext.from_pretrained(folder)
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.lm_head.weight += 1.0
    assert (folder / "model.safetensors").read_bytes() == before
    model.save_pretrained(folder)
    assert same(AFNext.from_pretrained(folder), model)
    assert not same(model, make())


def test_configuration_survives(tmp_path):
    config = ModelConfig(
        audio=CONFIG.audio,
        text=CONFIG.text,
        rote=RoteConfig("paper", theta=900.0, period=1200.0, text_step=0.5, clock="restart"),
        audio_token_id=7,
        stop_token_ids=(3, 4),
        repetition_penalty=1.05,
    )
    make(config=config).save_pretrained(tmp_path)
    assert AFNext.from_pretrained(tmp_path).config == config


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 60_000)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sharded(small_shards, tmp_path, layout):
    model = make()
    model.save_pretrained(tmp_path, layout=layout)
    for home in (tmp_path, tmp_path / "llm", tmp_path / "sound_tower"):
        index = home / "model.safetensors.index.json"
        if home == tmp_path and layout == "native":
            assert not index.exists()
        elif index.exists():
            raw = json.loads(index.read_text())
            files = set(raw["weight_map"].values())
            assert len(files) > 1
            assert {path.name for path in home.glob("*.safetensors")} == files
            held = {name: load_file(home / name) for name in files}
            assert raw["metadata"]["total_size"] == sum(t.nbytes for shard in held.values() for t in shard.values())
            assert all(key in held[name] for key, name in raw["weight_map"].items())
            assert all(len(shard) == 1 or sum(t.nbytes for t in shard.values()) <= 60_000 for shard in held.values())
    assert same(AFNext.from_pretrained(tmp_path), model)


def test_a_shard_the_index_names_is_missing(small_shards, tmp_path):
    make().save_pretrained(tmp_path)
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    refused(tmp_path, str(gone), "index names this shard")


def test_a_damaged_index(small_shards, tmp_path):
    make().save_pretrained(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text()[:100])
    refused(tmp_path, str(index), "cannot be read as JSON")


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("shards", [("one", "one"), ("many", "one"), ("one", "many"), ("many", "many")])
def test_a_save_replaces_the_checkpoint_before_it(tmp_path, monkeypatch, first, second, shards):
    old, new = make(1), make(2)
    for model, layout, count in ((old, first, shards[0]), (new, second, shards[1])):
        monkeypatch.setattr(checkpoint, "SHARD_BYTES", 60_000 if count == "many" else 5 * 10**9)
        model.save_pretrained(tmp_path / "model", layout=layout)
    new.save_pretrained(tmp_path / "fresh", layout=second)
    assert find_layout(tmp_path / "model") == second
    assert same(AFNext.from_pretrained(tmp_path / "model"), new)
    everything = [
        {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*")} for name in ("model", "fresh")
    ]
    assert everything[0] == everything[1]


def test_a_save_leaves_other_files_alone(tmp_path):
    make().save_pretrained(tmp_path, layout="native")
    others = [tmp_path / "notes.txt", tmp_path / "adapter.safetensors", tmp_path / "sound_tower" / "preprocessor.json"]
    others += [tmp_path / "llm" / "tokenizer_config.json"]
    for other in others:
        other.write_text("{}")
    model = make(3)
    model.save_pretrained(tmp_path, layout="hub")
    assert all(other.read_text() == "{}" for other in others)
    assert weight_files(tmp_path) == {"model.safetensors", "adapter.safetensors"}
    assert same(AFNext.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fails_at", [1, 3, 5])
def test_a_save_that_fails_changes_nothing(tmp_path, monkeypatch, layout, fails_at):
    old = make(1)
    old.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20_000)
    calls = []

    def full_disk(tensors, file, **options):
        calls.append(file)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        save_file(tensors, file, **options)

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make(2).save_pretrained(tmp_path, layout=layout)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in before}
    assert same(AFNext.from_pretrained(tmp_path), old)


LARGE = """
    import sys, torch
    from afn_model import AFNext
    from afn_model.config import AudioConfig, ModelConfig, TextConfig

    def peak():
        # Not ru_maxrss: a child inherits that from the process that starts it.
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

    task, folder, small, dtype = sys.argv[1:]
    if task == "save":
        audio = AudioConfig(width=512, layers=8, heads=8, ffn=2048)
        text = TextConfig(vocab_size=25_000, width=768, layers=6, heads=8, kv_heads=2, ffn=2048, max_positions=512)
        with torch.device("meta"):
            model = AFNext(ModelConfig(audio=audio, text=text))
        model = model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.fill_(0.5)
        model.save_pretrained(folder)
    else:
        AFNext.from_pretrained(small)  # what PyTorch imports at first use counts as the baseline
        before = peak()
        model = AFNext.from_pretrained(folder, dtype=getattr(torch, dtype, None))
        if task == "read":
            for parameter in model.parameters():
                parameter.detach().view(-1)[:: 4096 // parameter.element_size()].count_nonzero()
        print(peak() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A function that loads a float32 checkpoint of about 400 MB in a fresh process: (peak bytes, stored bytes)."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux has /proc")
    folder, small = tmp_path_factory.mktemp("large"), tmp_path_factory.mktemp("small")
    make().save_pretrained(small)

    def run(task, dtype):
        command = [sys.executable, "-c", textwrap.dedent(LARGE), task, str(folder), str(small), dtype]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return int(done.stdout or 0), (folder / "model.safetensors").stat().st_size

    run("save", "")
    yield run
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "dtype", "least"),
    [("load", "as stored", 0.0), ("read", "as stored", 0.9), ("read", "bfloat16", 0.5)],
)
def test_peak_memory_of_loading(large, task, dtype, least):
    # "read" also touches every page of the weights, mapped ones included, which is what a forward pass does.
    peak, size = large(task, dtype)
    assert size > 380e6
    assert least * size <= peak < 1.2 * size


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors", "a/b.safetensors", "", "..", 3])
def test_the_index_names_files_of_its_folder_only(small_shards, tmp_path, name):
    make().save_pretrained(tmp_path / "model")
    shard = min((tmp_path / "model").glob("model-*.safetensors"))
    shutil.copy(shard, tmp_path / "outside.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    raw["weight_map"] = {key: name if file == shard.name else file for key, file in raw["weight_map"].items()}
    index.write_text(json.dumps(raw))
    refused(tmp_path / "model", str(index), "is no name of a safetensors file in this folder")


@pytest.mark.parametrize("value", [None, [], 3, {}])
def test_an_index_without_shards(folder, value):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": value}))
    refused(folder, "weight_map must be an object of tensors and their shards")


def test_a_tensor_in_two_shards(folder):
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    shutil.copy(folder / "one.safetensors", folder / "two.safetensors")
    refused(folder, "two.safetensors", "is in one.safetensors too")


@pytest.mark.parametrize(
    ("part", "key", "value", "line"),
    [
        (
            "text_config",
            "num_hidden_layers",
            10**6,
            "text_config.num_hidden_layers is 1000000, but the weights have",
        ),
        ("audio_config", "num_hidden_layers", 10**6, "audio_config.num_hidden_layers is 1000000, but the weights have"),
        ("text_config", "hidden_size", 2**24, "has shape (32,"),
        ("text_config", "vocab_size", 2**24, "has shape (300, 32), expected (16777216, 32)"),
        ("audio_config", "max_source_positions", 2**24, "has shape (1500, 32), expected (16777216, 32)"),
    ],
)
def test_sizes_are_compared_before_anything_is_built(folder, monkeypatch, part, key, value, line):
    monkeypatch.setattr(checkpoint, "fill", None)
    edit_config(folder, lambda raw: raw[part].update({key: value}))
    refused(folder, line)


def test_weights_have_the_permissions_that_the_umask_gives(tmp_path):
    make().save_pretrained(tmp_path / "model")
    (tmp_path / "new").touch()
    modes = {file.stat().st_mode & 0o777 for file in (*(tmp_path / "model").iterdir(), tmp_path / "new")}
    assert len(modes) == 1


def test_a_conversion_replaces_nothing_unasked(folder, tmp_path):
    check = checkpoint.check_destination
    for place in (folder, folder / "llm", tmp_path / "." / "model"):
        with pytest.raises(ValueError, match="is what is converted; another folder is needed"):
            check(folder, place, overwrite=True)
    check(folder, tmp_path / "new", overwrite=False)
    for layout in LAYOUTS:
        make().save_pretrained(tmp_path / layout, layout=layout)
        with pytest.raises(ValueError, match=r"holds a model already .*; --overwrite replaces it"):
            check(folder, tmp_path / layout, overwrite=False)
        check(folder, tmp_path / layout, overwrite=True)
