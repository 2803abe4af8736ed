"""The speed benchmarks, on tiny models and few images."""

import json
import multiprocessing
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Command

from vitlab.benchmarks import variants
from vitlab.benchmarks.record import Record

GPU = torch.cuda.is_available()
DATA = ["data=synthetic", "data.train_images=60", "data.test_images=20", "data.val_size=20", "data.batch_size=4"]
MODEL = ["model.embed_dim=32", "model.depth=1", "model.num_heads=2"]
QUICK = ["rounds=1", "steps=1", "out=x.json"]


def saved(file: Path) -> dict[str, dict[str, list[float]]]:
    figures = json.loads(file.read_text())["figures"]
    assert all(value > 0 for section in figures.values() for values in section.values() for value in values)
    return figures


def test_a_round_runs_every_variant_once(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []

    def variant(name: str, steps: int) -> float:
        calls.append((name, steps))
        return float(len(calls))

    record = Record(tmp_path / "x.json", {})
    record.measure("speed", {name: partial(variant, name) for name in ("a", "b")}, rounds=2, steps=3)
    assert calls == [("a", 3), ("b", 3), ("a", 3), ("b", 3)]
    assert record.figures == {"speed": {"a": [1, 3], "b": [2, 4]}}


def test_finetuning_saves_figures_and_never_overwrites_them(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The notebook's process is forked, which saves the seconds of importing torch, so it has no other threads.
    monkeypatch.setattr(variants, "get_context", lambda _: multiprocessing.get_context("fork"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    arguments = [*DATA, "model.name=test_vit", "data.image_size=32", "rounds=2", "out=here.json"]
    result = in_process("src/vitlab/bench.py", "name=finetuning", *arguments)
    torch.set_num_threads(threads)
    assert result.returncode == 0, result.stderr
    assert "notebook, float32" in result.stdout
    (speeds,) = saved(tmp_path / "here.json").values()
    assert list(speeds) == ["notebook, float32", "vitlab, float32", "vitlab, bfloat16"]
    assert [len(values) for values in speeds.values()] == [2, 2, 2]
    record = json.loads((tmp_path / "here.json").read_text())
    assert (record["model"]["name"], record["data"]["batch_size"]) == ("test_vit", 4)
    assert record["hardware"]["cpu_cores"] > 0
    again = in_process("src/vitlab/bench.py", "name=finetuning", *arguments)
    assert again.returncode == 2
    assert "here.json" in again.stderr


def test_input_compares_every_path_with_pillow(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "PAUSE", 0.0)
    result = in_process("src/vitlab/bench.py", "name=input", *DATA, *QUICK)
    assert result.returncode == 0, result.stderr
    sections = saved(tmp_path / "x.json")
    assert list(sections) == [
        "crop and flip, 32 px, images/s",
        "crop, flip and RandAugment, 32 px, images/s",
        "crop, flip and TrivialAugment, 32 px, images/s",
        "flip, resize to 224 px, images/s",
    ]
    assert all("Pillow" in next(iter(section)) for section in sections.values())


@pytest.mark.slow  # starts two trainings
def test_step_runs_train_py_and_timm_s(in_process: Command, tmp_path: Path) -> None:
    script = tmp_path / "timm_train.py"  # checks its arguments, and prints speeds as timm does
    script.write_text(
        "import pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "assert 'patch_size=[4, 4]' in sys.argv and 'embed_dim=32' in sys.argv, sys.argv\n"
        "assert len(list(folder.glob('train/*/*.png'))) == 4\n"
        "assert len(list(folder.glob('validation/*/*.png'))) == 10\n"
        "for epoch, step, speed in ((0, 0, 9), (0, 1, 8), (1, 0, 3), (1, 1, 50), (1, 2, 51.28), (1, 3, 70)):\n"
        "    print(f'Train: {epoch} [   {step}/4 ( 50%)]  Loss: 2.3 (2.3)  Time: 2.4s, {speed:>7.2f}/s  (2s, 5/s)')\n"
    )
    result = in_process("src/vitlab/bench.py", "name=step", *DATA, *MODEL, *QUICK, "timm_train=timm_train.py")
    assert result.returncode == 0, result.stderr
    (training,) = saved(tmp_path / "x.json").values()
    assert list(training) == ["bare loop", "train.py", "timm's train.py"]
    assert training["timm's train.py"] == [51.28]
    assert not (tmp_path / "outputs" / "vit_scratch").exists()


@pytest.mark.slow  # starts six processes, most of which import torch
def test_start_reaches_the_first_step(in_process: Command, tmp_path: Path) -> None:
    result = in_process("src/vitlab/bench.py", "name=start", *DATA, *MODEL, *QUICK, "preflight=off")
    assert result.returncode == 0, result.stderr
    (seconds,) = saved(tmp_path / "x.json").values()
    assert seconds["--help"][0] < seconds["first step begins"][0]
    assert not (tmp_path / "outputs" / "vit_scratch").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["name=nope"], "name=nope is unknown; choose one of finetuning, gpu, input, start, step"),
        (["name=finetuning", "rounds=0"], "rounds=0"),
        (["name=step", "steps=0"], "steps=0"),
        (["name=input", "data=image_folder", "data.root=nowhere"], "nowhere"),
        (["name=step", *DATA, *MODEL, "timm_train=nowhere.py", "rounds=1"], "nowhere.py"),
        (["name=gpu", "tiny=true", "parts=[smoke,speeed]"], "speeed"),
        pytest.param(["name=gpu"], "name=gpu needs a CUDA GPU", marks=pytest.mark.skipif(GPU, reason="has a GPU")),
    ],
    ids=str,
)
def test_mistakes_end_with_status_2(arguments: list[str], message: str, in_process: Command) -> None:
    result = in_process("src/vitlab/bench.py", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
