import json
from functools import partial
from pathlib import Path

import pytest
from conftest import Command

from vitlab.benchmarks import BENCHMARKS, Benchmark, measure
from vitlab.benchmarks.input import input_paths


def test_variants_take_turns_after_a_step_that_is_not_timed() -> None:
    calls: list[tuple[str, int]] = []

    def variant(name: str, steps: int) -> int:
        calls.append((name, steps))
        return 8 * steps

    speeds = measure({name: partial(variant, name) for name in ("a", "b")}, rounds=2, steps=3)
    assert calls == [("a", 1), ("b", 1), ("a", 3), ("b", 3), ("a", 3), ("b", 3)]
    assert {name: len(values) for name, values in speeds.items()} == {"a": 2, "b": 2}


def test_the_fine_tuning_benchmark_writes_its_figures(in_process: Command, tmp_path: Path) -> None:
    arguments = ["data=synthetic", "data.train_images=100", "data.test_images=20", "data.val_size=20"]
    arguments += ["data.batch_size=4", "model.name=test_vit", "data.image_size=32", "rounds=2", "out=here.json"]
    result = in_process("src/vitlab/bench.py", "name=finetuning", *arguments)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "here.json").read_text())
    (speeds,) = figures["images_per_second"].values()
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
    quick = Benchmark(input_paths, (), 2, warmup=1)
    monkeypatch.setitem(BENCHMARKS, "input", quick)
    arguments = ["data=synthetic", "data.train_images=60", "data.test_images=20", "data.val_size=20"]
    result = in_process("src/vitlab/bench.py", "name=input", *arguments, "data.batch_size=4", "rounds=1", "out=x.json")
    assert result.returncode == 0, result.stderr
    sections = json.loads((tmp_path / "x.json").read_text())["images_per_second"]
    assert list(sections) == [
        "crop and flip, 32 px",
        "crop, flip and RandAugment, 32 px",
        "crop, flip and TrivialAugment, 32 px",
        "flip, resize to 224 px",
    ]
    assert all("Pillow" in next(iter(section)) for section in sections.values())
    assert all(speed > 0 for section in sections.values() for values in section.values() for speed in values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["name=nope"], "name=nope is unknown; choose of finetuning, input"),
        (["name=finetuning", "rounds=0"], "rounds=0"),
    ],
    ids=str,
)
def test_mistakes(arguments: list[str], message: str, in_process: Command) -> None:
    result = in_process("src/vitlab/bench.py", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
