import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Command
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vitlab.benchmarks import BENCHMARKS, Benchmark, attention, gpu, measure
from vitlab.benchmarks.input import input_paths
from vitlab.benchmarks.variant import Work
from vitlab.config.compose import CONF
from vitlab.config.instantiate import build_network
from vitlab.models.flops import forward_flops

GPU = torch.cuda.is_available()


def test_variants_take_turns() -> None:
    calls: list[tuple[str, int]] = []

    def variant(name: str, steps: int) -> float:
        calls.append((name, steps))
        return float(len(calls))

    speeds = measure({name: partial(variant, name) for name in ("a", "b")}, rounds=2, steps=3)
    assert calls == [("a", 3), ("b", 3), ("a", 3), ("b", 3)]
    assert speeds == {"a": [1, 3], "b": [2, 4]}


def test_the_fine_tuning_benchmark_writes_its_figures(in_process: Command, tmp_path: Path) -> None:
    arguments = ["data=synthetic", "data.train_images=100", "data.test_images=20", "data.val_size=20"]
    arguments += ["data.batch_size=4", "model.name=test_vit", "data.image_size=32", "rounds=2", "out=here.json"]
    result = in_process("src/vitlab/bench.py", "name=finetuning", *arguments)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "here.json").read_text())
    (speeds,) = figures["figures"].values()
    assert next(iter(speeds)) == "notebook, float32"
    assert [len(values) for values in speeds.values()] == [2] * 5
    assert (figures["model"]["name"], figures["data"]["batch_size"]) == ("test_vit", 4)
    assert figures["hardware"]["cpu_cores"] > 0
    again = in_process("src/vitlab/bench.py", "name=finetuning", *arguments)
    assert again.returncode == 2
    assert "out=here.json is there already" in again.stderr


def test_the_input_benchmark_compares_each_path_with_pillow_s(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Benchmark(input_paths, (), 2)
    monkeypatch.setitem(BENCHMARKS, "input", quick)
    arguments = ["data=synthetic", "data.train_images=60", "data.test_images=20", "data.val_size=20"]
    result = in_process("src/vitlab/bench.py", "name=input", *arguments, "data.batch_size=4", "rounds=1", "out=x.json")
    assert result.returncode == 0, result.stderr
    sections = json.loads((tmp_path / "x.json").read_text())["figures"]
    assert list(sections) == [
        "crop and flip, 32 px, images/s",
        "crop, flip and RandAugment, 32 px, images/s",
        "crop, flip and TrivialAugment, 32 px, images/s",
        "flip, resize to 224 px, images/s",
    ]
    assert all("Pillow" in next(iter(section)) for section in sections.values())
    assert all(speed > 0 for section in sections.values() for values in section.values() for speed in values)


def test_the_gpu_benchmark_has_the_peak_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "peak_flops", lambda device, precision: 1e12)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["name=x", "run_dir=x"])
    work = Work(config, [*DATA, *QUICK[:3]], OmegaConf.create({"timm_train": None}))
    case = {"tiny": ["model.patch_size=8"]}
    products, steps = gpu.sections(work, torch.device("cpu"), case, side=64).values()
    assert measure(products, rounds=1, steps=1)["data sheet"] == [1.0]
    assert list(steps) == [
        "data sheet",
        *(f"bare loop, {kind}{fused}" for kind in ("eager", "compiled") for fused in ("", ", fused AdamW")),
        *("train.py, eager", "train.py, compiled"),
    ]
    network = build_network(
        OmegaConf.merge(
            config.model,
            {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 10, "image_size": 32},
        )
    )
    assert steps["data sheet"](1) == pytest.approx(1e12 / 3 / forward_flops(network, torch.zeros(1, 3, 32, 32)))
    assert steps["bare loop, eager, fused AdamW"](1) > 0


DATA = ["data=synthetic", "data.train_images=60", "data.test_images=20", "data.val_size=20", "data.batch_size=4"]
QUICK = ["model.embed_dim=32", "model.depth=1", "model.num_heads=2", "rounds=1", "steps=1", "out=x.json"]


def test_the_attention_benchmark_covers_lengths(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SIZES", ((32, 2), (64, 1)))
    result = in_process("src/vitlab/bench.py", "name=attention", *QUICK)
    assert result.returncode == 0, result.stderr
    sections = json.loads((tmp_path / "x.json").read_text())["figures"]
    assert {"float32, 32 px, batches of 2, images/s", "float32, 64 px, batches of 1, images/s"} <= set(sections)
    assert all(list(section) == ["plain", "fused"] for section in sections.values())


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_benchmark_of_tricks_measures_each_without_and_with(pool: str, in_process: Command, tmp_path: Path) -> None:
    result = in_process("src/vitlab/bench.py", "name=tricks", f"model.pool={pool}", *DATA, *QUICK)
    assert result.returncode == 0, result.stderr
    sections = json.loads((tmp_path / "x.json").read_text())["figures"]
    assert [list(section) for section in sections.values()] == [
        ["given back", "kept"],
        *([["all tokens", "those that the head reads"]] if pool == "cls" else []),
        ["given back", "kept"],
        ["one operation after another", "in place"],
    ]
    assert all(speed > 0 for section in sections.values() for values in section.values() for speed in values)


@pytest.mark.slow  # two trainings in processes of their own
def test_the_step_benchmark_runs_train_py_and_timm_s(in_process: Command, tmp_path: Path) -> None:
    script = tmp_path / "timm_train.py"  # says what it was given, as timm's says its speed
    script.write_text(
        "import pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "assert 'patch_size=[4, 4]' in sys.argv and 'embed_dim=32' in sys.argv, sys.argv\n"
        "assert len(list(folder.glob('train/*/*.png'))) == 4\n"
        "assert len(list(folder.glob('validation/*/*.png'))) == 10\n"
        "for epoch, step, speed in ((0, 0, 9), (0, 1, 8), (1, 0, 3), (1, 1, 50), (1, 2, 51.28), (1, 3, 70)):\n"
        "    print(f'Train: {epoch} [   {step}/4 ( 50%)]  Loss: 2.3 (2.3)  Time: 2.4s, {speed:>7.2f}/s  (2s, 5/s)')\n"
    )
    result = in_process("src/vitlab/bench.py", "name=step", *DATA, *QUICK, "timm_train=timm_train.py")
    assert result.returncode == 0, result.stderr
    training, evaluation = json.loads((tmp_path / "x.json").read_text())["figures"].values()
    assert list(training) == ["bare loop", "train.py", "timm's train.py"]
    assert training["timm's train.py"] == [51.28]
    assert training["train.py"][0] > 0
    assert list(evaluation) == ["training", "evaluation"]
    assert not (tmp_path / "outputs" / "vit_scratch").exists()


@pytest.mark.slow  # four processes, three of which import torch
def test_the_start_benchmark_gets_to_the_first_step(in_process: Command, tmp_path: Path) -> None:
    result = in_process("src/vitlab/bench.py", "name=start", *DATA, *QUICK, "preflight=off")
    assert result.returncode == 0, result.stderr
    ((section, seconds),) = json.loads((tmp_path / "x.json").read_text())["figures"].items()
    assert section == "seconds from typing"
    assert seconds["--help"][0] < seconds["first step done"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["name=nope"], "name=nope is unknown; choose of attention, finetuning, gpu, input, start, step, tricks"),
        (["name=finetuning", "rounds=0"], "rounds=0"),
        (["name=tricks", "data=image_folder", "data.root=nowhere"], "nowhere"),
        pytest.param(["name=gpu"], "name=gpu needs a CUDA GPU", marks=pytest.mark.skipif(GPU, reason="there is one")),
    ],
    ids=str,
)
def test_mistakes(arguments: list[str], message: str, in_process: Command) -> None:
    result = in_process("src/vitlab/bench.py", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
