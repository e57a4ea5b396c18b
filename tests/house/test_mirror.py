"""Tests stand where their source stands: tests/<folder>/test_<file>.py for <folder>/<file>.py; names are given once."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"kernels": "afn_kernels", "model": "afn_model", "distributed": "distributed", "bench": "bench"}
# Tests of several modules, each with what they have in common.
SEVERAL = {
    "kernels/test_every_op.py": "the questions that every op answers",
    "kernels/test_binaries.py": "every kernel compiled for sm_90a",
    "kernels/test_interpreter.py": "Triton's interpreter as the tests have it",
    "kernels/test_tiles.py": "the loops of every kernel with a GPU's tiles",
    "kernels/test_real_widths.py": "every op at the model's widths, on a GPU",
    "kernels/test_pointwise_and_norms.py": "ops on rows against their formulas",
    "kernels/test_rotary_and_rote.py": "both rotations",
    "kernels/patch/test_around.py": "patched models and what others do to models",
    "model/cli/test_bad_input.py": "errors of all commands",
    "model/eval/test_every_benchmark.py": "every benchmark of the table on its copy",
    "model/infer/test_engine_faults.py": "what the engine and those who call it do when something goes wrong",
    "model/serve/test_fuzz.py": "mutated requests to all routes",
    "model/weights/test_other_readers.py": "folders as vLLM and llama.cpp's converter read them",
    "model/network/test_kernels_in_training.py": "optimiser steps of the whole network in Triton",
}
# Modules that other tests cover, or that hold data alone: by folder, then by name.
COVERED = {
    "afn_kernels": "op folders: tests/kernels/cases/<op>.py and test_every_op.py ask every file of every op",
    "afn_model/world": "scenes and tasks: test_build.py makes records of every one of them",
    "afn_model/cli": "test_commands.py runs every command",
    "bench": "measurements: run and kept by hand, but for what writes and judges results",
}
MODULES = {
    "afn_model/afnext.py": "tests/model/infer and weights call it",
    "afn_model/afwhisper.py": "tests/model/weights/test_speech.py and tests/model/train/test_asr.py",
    "afn_model/config.py": "tests/model/weights/test_config_json.py",
    "afn_model/hashing.py": "tests/model/data/test_order.py",
    "afn_model/plot_style.py": "colours and sizes",
    "afn_model/audio/frames.py": "tests/model/audio/test_decode.py",
    "afn_model/bootstrap/fit.py": "tests/model/bootstrap/test_lessons.py",
    "afn_model/bootstrap/run_results.py": "tests/model/bootstrap/test_tiny_speech.py",
    "afn_model/bootstrap/speech_report.py": "tests/model/bootstrap/test_tiny_speech.py",
    "afn_model/bootstrap/speech_times.py": "tests/model/bootstrap/test_tiny_speech.py",
    "afn_model/bootstrap/talk_report.py": "tests/model/bootstrap/test_tiny_talk.py",
    "afn_model/bootstrap/tiny.py": "tests/model/bootstrap/test_tiny_curriculum.py",
    "afn_model/curate/rows.py": "tests/model/curate/test_run.py",
    "afn_model/curate/spending.py": "tests/model/curate/test_run.py and test_plan.py",
    "afn_model/curate/status.py": "tests/model/curate/test_report.py",
    "afn_model/curate/stand_ins/rules/captions.py": "tests/model/curate/stand_ins/test_truth.py",
    "afn_model/curate/stand_ins/rules/rule_input.py": "tests/model/curate/stand_ins/test_truth.py",
    "afn_model/curate/stand_ins/rules/pools.py": "tests/model/curate/stages/test_multi_audio.py and test_chat.py",
    "afn_model/curate/takedown.py": "tests/model/curate/test_lineage.py and test_run.py",
    "afn_model/curate/stand_ins/rules/talkers.py": "tests/model/curate/stages/test_talkers.py",
    "afn_model/data/containers.py": "tests/model/data/test_index.py and test_webdataset.py",
    "afn_model/data/stats.py": "tests/model/cli/test_data.py",
    "afn_model/demo/plot.py": "tests/model/demo/test_demo.py",
    "afn_model/demo/report.py": "tests/model/demo/test_demo.py",
    "afn_model/curate/stand_ins/spoken.py": "sentences and channels",
    "afn_model/curate/stages/asking.py": "tests/model/curate/stages/test_captions.py and its neighbours",
    "afn_model/eval/items.py": "tests/model/eval/test_every_benchmark.py and loaders/",
    "afn_model/eval/prompts.py": "tests/model/eval/running/test_asks.py",
    "afn_model/eval/score.py": "tests/model/eval/reports/test_scored.py and rules/",
    "afn_model/eval/copies/sounds.py": "tests/model/eval/test_every_benchmark.py",
    "afn_model/eval/copies/choices.py": "tests/model/eval/test_every_benchmark.py",
    "afn_model/eval/copies/voices.py": "tests/model/eval/test_every_benchmark.py",
    "afn_model/eval/copies/speech.py": "tests/model/eval/loaders/test_speech.py",
    "afn_model/eval/copies/talkers.py": "tests/model/eval/loaders/test_talkers.py",
    "afn_model/infer/request.py": "tests/model/infer/test_engine.py",
    "afn_model/infer/rollout.py": "tests/model/infer/test_generate.py",
    "afn_model/infer/sequence.py": "tests/model/infer/test_schedule.py",
    "afn_model/infer/text_stream.py": "tests/model/cli/test_commands.py",
    "afn_model/network/adaptor.py": "tests/model/network/test_network.py",
    "afn_model/network/joint.py": "tests/model/network/test_fused.py",
    "afn_model/network/kv_cache.py": "tests/model/infer/test_engine.py",
    "afn_model/network/language_model.py": "tests/model/network/test_network.py",
    "afn_model/scoring/constraints.py": "tests/model/scoring/test_metrics.py and test_rewards.py",
    "afn_model/scoring/own_worker.py": "tests/model/scoring/test_own.py",
    "afn_model/scoring/text.py": "tests/model/scoring/test_metrics.py and test_rewards.py",
    "afn_model/scoring/timestamps.py": "tests/model/scoring/test_metrics.py and test_rewards.py",
    "afn_model/serve/app.py": "tests/model/serve/test_server.py",
    "afn_model/train/method_of.py": "tests/model/train/test_voice_model.py and test_stage_run.py",
    "afn_model/train/methods.py": "tests/model/train/test_curriculum.py and test_planner.py",
    "afn_model/serve/chat_reply.py": "tests/model/serve/test_chat.py",
    "afn_model/serve/chat_request.py": "tests/model/serve/test_chat.py",
    "afn_model/serve/errors.py": "tests/model/serve/test_server.py",
    "afn_model/serve/caption_cache.py": "tests/model/serve/test_captions.py",
    "afn_model/serve/recording.py": "tests/model/serve/test_intake.py",
    "afn_model/serve/settings.py": "tests/model/serve/test_server.py",
    "afn_model/serve/transcript_request.py": "tests/model/serve/test_transcriptions.py",
    "afn_model/train/grpo_settings.py": "tests/model/train/test_grpo.py",
    "afn_model/train/heard.py": "tests/model/train/test_voice_reader.py",
    "afn_model/train/held_records.py": "tests/model/train/test_evaluate.py",
    "afn_model/train/sft.py": "tests/model/train/test_feature_cache.py and test_trainer.py",
    "afn_model/train/validate.py": "tests/model/train/test_curriculum.py and test_trainer.py",
}


def tests() -> list[str]:
    files = (file for folder in FOLDERS for file in (ROOT / "tests" / folder).rglob("test_*.py"))
    return sorted(str(file.relative_to(ROOT / "tests")) for file in files)


def sources(test: str) -> list[Path]:
    """Where the source of a test would stand: a file, a private file, or a folder's own."""
    folder, *parts, name = Path(test).parts
    home, stem = ROOT / FOLDERS[folder] / Path(*parts), Path(name).stem.removeprefix("test_")
    places = [home / f"{stem}.py", home / f"_{stem}.py", home / f"__{stem}__.py", home / stem / "__init__.py"]
    return [*places, home / "__init__.py"] if parts and parts[-1] == stem else places


@pytest.mark.parametrize("test", tests())
def test_a_test_stands_beside_its_source(test):
    assert test in SEVERAL or any(place.exists() for place in sources(test)), "nothing of this name is there to test"


def test_a_source_has_a_test_of_its_name_or_is_said_to_be_covered():
    tested = {place for test in tests() for place in sources(test)}
    for folder in FOLDERS.values():
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            if file.name.startswith("__") or file in tested or name in MODULES:
                continue
            assert any(name.startswith(f"{covered}/") for covered in COVERED), f"{name} has no test_{file.name}"


def test_what_is_said_to_be_covered_is_there():
    tested = {place for test in tests() for place in sources(test)}
    for name, where in MODULES.items():
        assert (ROOT / name).exists(), name
        assert ROOT / name not in tested, f"{name} has a test of its name by now"
        for path in re.findall(r"tests/[\w/]+\.py", where):
            assert (ROOT / path).exists(), path
    assert all((ROOT / "tests" / test).exists() for test in SEVERAL)


def test_class_names_are_unique():
    found = defaultdict(list)
    for folder in (*FOLDERS.values(), "examples", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"^class (\w+)", file.read_text(encoding="utf-8"), re.M):
                found[name].append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_no_file_is_longer_than_500_lines():
    for pattern in ("*.py", "*.cu", "*.cuh", "*.cpp", "*.h"):
        for folder in (*FOLDERS.values(), "csrc", "examples", "tests"):
            for file in (ROOT / folder).rglob(pattern):
                assert len(file.read_text(encoding="utf-8").splitlines()) <= 500, file
