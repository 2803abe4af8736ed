"""What of runs goes on record and into the README."""

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from sweeps.runs import MANIFEST, write_run

from vitlab.claims.publish import MEASURED, publish
from vitlab.errors import UserError

HARDWARE = {"cpu": "a processor", "torch_threads": 2, "gpus": []}


def manifest(minute: int = 0, **changes: Any) -> dict[str, Any]:
    images = {split: {"images": 1280, "sha256": split} for split in ("train", "val", "test")}
    started = f"2026-01-01T00:{minute:02d}:00+00:00"
    return {**MANIFEST, "data": images, "hardware": HARDWARE, "parameters": 1_800_000, "started": started, **changes}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """`conf/experiment` with one recipe and two published figures, and a README."""
    home = tmp_path / "conf" / "experiment"
    home.mkdir(parents=True)
    (home / "demo.yaml").write_text("# A claim.\n# Measured: not yet,\n#   as it says.\n# More.\nname: demo\n")
    (home / "published.csv").write_text("what,accuracy,epochs,source\nbetter,91.5,200,somebody\nworse,40.25,1,others\n")
    (tmp_path / "README.md").write_text("above\n<!-- results -->\nold\n<!-- end of results -->\nbelow\n")
    return tmp_path


def run_of(project: Path, seed: int, test: float, *typed: str, **changes: Any) -> Path:
    overrides = ("experiment=demo", *typed, f"seed={seed}")
    folder = project / "outputs" / f"{len(list((project / 'outputs').glob('*')))}"
    return write_run(folder, *overrides, test=test, val=test + 0.01, manifest=manifest(seed, **changes), seconds=1800.0)


def published(project: Path, *folders: Path, data: str | None = None) -> str:
    publish(folders, data, project / "conf", project / "README.md")
    return (project / "README.md").read_text()


def test_seeds_become_one_row_between_the_published_ones(project: Path) -> None:
    for seed, accuracy in enumerate((0.70, 0.72, 0.74)):
        run_of(project, seed, accuracy)
    text = published(project, project / "outputs", data="CIFAR-10 (JPEG copy)")
    assert text.startswith("above\n<!-- results -->\n| what |")
    assert text.endswith("|\n<!-- end of results -->\nbelow\n")
    assert [line.split(" | ")[0] for line in text.splitlines()[4:7]] == [
        "| better",
        "| [**demo**](conf/experiment/demo.yaml) ([curve](conf/experiment/curves/demo.svg)), 1.8 M parameters, "
        "CIFAR-10 (JPEG copy)",
        "| worse",
    ]
    row = next(line for line in text.splitlines() if "demo" in line)
    assert "| **72.00 ± 2.00** (3 seeds) |" in row
    assert "| 1.5 | 0:30:00, a processor, 2 cores, auto |" in row
    assert "`python train.py experiment=demo seed=0,1,2 -m` at 0000000" in row


def test_the_recipe_gets_its_figures_and_its_curve(project: Path) -> None:
    run_of(project, 0, 0.7)
    published(project, project / "outputs")
    header = (project / "conf" / "experiment" / "demo.yaml").read_text()
    assert header.startswith("# A claim.\n# Measured: 70.00 % of the test images of drawn shapes (one seed), ")
    assert header.endswith("\n# More.\nname: demo\n")
    assert "not yet" not in header
    assert "as it says" not in header
    curve = (project / "conf" / "experiment" / "curves" / "demo.svg").read_text()
    assert curve.startswith("<?xml")


def test_the_record_outlives_its_runs(project: Path) -> None:
    run_of(project, 0, 0.7)
    first = published(project, project / "outputs")
    shutil.rmtree(project / "outputs")
    assert published(project) == first
    run_of(project, 1, 0.8)
    assert "75.00 ± 7.07** (2 seeds)" in published(project, project / "outputs")
    with (project / "conf" / "experiment" / "results.csv").open(newline="") as file:
        assert [row["accuracy"] for row in csv.DictReader(file)] == ["0.7", "0.8"]


def test_a_claim_is_of_one_commit(project: Path) -> None:
    """The one with the most seeds; of equal ones the newest."""
    other = {"git": {"revision": "1" * 40, "dirty": False}}
    run_of(project, 0, 0.70)
    run_of(project, 1, 0.60, **other)
    assert "**60.00** (one seed)" in published(project, project / "outputs")
    run_of(project, 2, 0.80)
    run_of(project, 3, 0.50, **other)
    assert "**55.00 ± 7.07** (2 seeds)" in published(project, project / "outputs")
    run_of(project, 4, 0.90)
    assert "**80.00 ± 10.00** (3 seeds)" in published(project, project / "outputs")


def test_each_machine_has_its_own_row_and_line(project: Path) -> None:
    run_of(project, 0, 0.7)
    run_of(project, 1, 0.8, hardware={**HARDWARE, "gpus": ["a GPU"] * 8})
    text = published(project, project / "outputs")
    assert "a processor, 2 cores, auto |" in text
    assert "8 x a GPU, auto |" in text
    header = (project / "conf" / "experiment" / "demo.yaml").read_text()
    assert header.count("of the test images") == 2
    assert header.count("# Measured: ") == 1


def test_epochs_are_those_of_the_whole_run(project: Path) -> None:
    """Not of the epoch that was selected; images that fill no batch are not counted."""
    overrides = ("experiment=demo", "seed=0")
    selected = {"step": 20.0}
    write_run(
        project / "outputs" / "0", *overrides, test=0.7, epochs=30, manifest=manifest(0), seconds=60.0, **selected
    )
    assert "| 15.0 |" in published(project, project / "outputs")  # 300 steps of 20 batches of 64


@pytest.mark.parametrize(
    ("typed", "changes", "reason"),
    [
        ((), {"git": {"revision": "1" * 40, "dirty": True}}, "is of code that no commit has: commit first, then train"),
        (("optimizer.lr=0.1",), {}, "is not its experiment as it stands: optimizer.lr=0.1"),
        ((), {"resumed": [{"epoch": 1}]}, "was interrupted and went on: only what one command did goes on record"),
    ],
)
def test_what_nobody_could_check_is_refused(
    typed: tuple[str, ...], changes: dict[str, Any], reason: str, project: Path
) -> None:
    folder = run_of(project, 0, 0.7, *typed, **changes)
    with pytest.raises(UserError, match=re.escape(f"{folder} {reason}")):
        published(project, project / "outputs")
    assert not (project / "conf" / "experiment" / "results.csv").exists()


def test_unfinished_runs_and_such_of_no_experiment_are_refused(project: Path) -> None:
    write_run(project / "outputs" / "0", status="interrupted", manifest=manifest())
    with pytest.raises(UserError, match="is interrupted: only finished runs go on record"):
        published(project, project / "outputs")
    write_run(project / "untested" / "0", "experiment=demo", test=None, manifest=manifest())
    with pytest.raises(UserError, match="was not tested"):
        published(project, project / "untested")
    write_run(project / "others" / "0", manifest=manifest())
    with pytest.raises(UserError, match="is no run of an experiment"):
        published(project, project / "others")


@pytest.mark.parametrize(
    ("file", "reason"),
    [("README.md", "has no <!-- results -->"), ("conf/experiment/demo.yaml", "has no line '# Measured: ...'")],
)
def test_where_a_file_has_no_place_for_the_figures_nothing_is_written(file: str, reason: str, project: Path) -> None:
    run_of(project, 0, 0.7)
    (project / file).write_text("nothing")
    before = (project / "README.md").read_text()
    with pytest.raises(UserError, match=re.escape(reason)):
        published(project, project / "outputs")
    assert not (project / "conf" / "experiment" / "results.csv").exists()
    assert (project / "README.md").read_text() == before


@pytest.mark.parametrize("recipe", ["demo", *(file.stem for file in (ROOT / "conf/experiment").glob("cifar10_*.yaml"))])
def test_every_recipe_has_a_place_for_its_figures(recipe: str) -> None:
    found = MEASURED.search((ROOT / "conf" / "experiment" / f"{recipe}.yaml").read_text())
    assert found


def test_the_readme_s_table_is_the_record_s(tmp_path: Path) -> None:
    """Nobody has typed into it."""
    shutil.copytree(ROOT / "conf" / "experiment", tmp_path / "conf" / "experiment")
    shutil.copy(ROOT / "README.md", tmp_path)
    publish([], None, tmp_path / "conf", tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()
