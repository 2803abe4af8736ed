"""Run directories: opening, writing, file formats of earlier versions."""

import json
import os
from pathlib import Path

import pytest
import torch

from vitlab.errors import UserError
from vitlab.files import replacing, set_aside, write_json, write_text
from vitlab.runs.directory import RunDirectory, checkpoint_named, write_epochs


def begun(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.create({"seed": 0}, {})
    return run


def finished(path: Path) -> RunDirectory:
    run = begun(path)
    run.end("finished")
    return run


def test_latest_is_the_newest_finished_run(tmp_path: Path) -> None:
    finished(tmp_path / "b" / "1")
    newest = finished(tmp_path / "a" / "2")
    begun(tmp_path / "c" / "3")  # still running
    begun(tmp_path / "c" / "4").end("failed")
    assert RunDirectory.open("latest", str(tmp_path)).path == newest.path


def test_times_of_any_zone_are_compared(tmp_path: Path) -> None:
    for name, time in (("a", "2026-03-01T13:30:00+00:00"), ("b", "2026-03-01T14:00:00+01:00"), ("c", "none")):
        run = finished(tmp_path / name)
        write_json(run.path / "manifest.json", {**run.manifest(), "finished": time})
    assert RunDirectory.open("latest", str(tmp_path)).path.name == "a"


def test_without_a_finished_run_there_is_no_latest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no finished run below"):
        RunDirectory.open("latest", str(tmp_path))


def test_a_run_is_never_written_over_another(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    before = run.manifest_file.read_text()
    with pytest.raises(UserError, match="holds a run already"):
        RunDirectory(tmp_path / "run").create({"seed": 1}, {})
    assert run.manifest_file.read_text() == before
    assert run.config().seed == 0


@pytest.mark.parametrize(
    "path",
    [
        *("outputs/vit/1", "outputs/vit/1/", "outputs/vit/1/checkpoints/last.ckpt", "outputs/vit/1/checkpoints/"),
        *("outputs/vit/1/config.yaml", "./outputs//vit/1", "vit", "vit/", "vit/1", "outputs/vit", "vit/1/config.yaml"),
        *("outputs/vit/1/checkpoints/own/a.ckpt", "vit/1/checkpoints/own/a.ckpt"),
    ],
)
def test_a_run_is_found_by_its_directory_its_files_and_its_name(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = finished(tmp_path / "outputs" / "vit" / "1")
    (run.checkpoints / "own").mkdir(parents=True)
    for name in ("last.ckpt", "own/a.ckpt"):  # a callback of the user's wrote the other one
        (run.checkpoints / name).touch()
    finished(tmp_path / "outputs" / "other" / "2")
    assert RunDirectory.open(path, "outputs").path.resolve() == run.path
    assert RunDirectory.open(str(tmp_path / path) if path[0] in "o." else path, "outputs").path.resolve() == run.path


def test_a_run_is_found_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(tmp_path / "run")
    run.checkpoints.mkdir()
    (run.checkpoints / "last.ckpt").touch()
    for folder, path in ((run.path, "."), (run.path, "checkpoints/last.ckpt"), (run.checkpoints, "last.ckpt")):
        monkeypatch.chdir(folder)
        assert RunDirectory.open(path, "outputs").path.resolve() == run.path
    with pytest.raises(UserError, match="does not exist"):
        RunDirectory.open("nothing", "outputs")
    (tmp_path / "alone.ckpt").touch()
    with pytest.raises(UserError, match="init_from"):
        RunDirectory.open(str(tmp_path / "alone.ckpt"), "outputs")


def test_latest_in_a_folder_is_its_newest_run_unless_a_run_has_that_name(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    for number, name in enumerate(("1", "latest", "2"), 1):
        run = finished(outputs / "vit" / name)
        expected = run if name == "1" else RunDirectory(outputs / "vit" / "latest")
        write_json(run.manifest_file, {**run.manifest(), "finished": f"2026-01-0{number}"})
        for path in ("vit/latest", str(outputs / "vit" / "latest")):
            assert RunDirectory.open(path, str(outputs)).path == expected.path


@pytest.mark.parametrize("path", ["outputs", "outputs/vit", "vit", "vit/latest", "outputs/vit/1/checkpoints/last.ckpt"])
def test_a_project_s_own_config_does_not_make_it_a_run(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("config.yaml", "best.ckpt"):
        Path(name).touch()
    run = finished(tmp_path / "outputs" / "vit" / "1")
    run.checkpoints.mkdir()
    (run.checkpoints / "last.ckpt").touch()
    assert RunDirectory.open(path, "outputs").path.resolve() == run.path
    with pytest.raises(UserError, match="init_from"):
        RunDirectory.open("best.ckpt", "outputs")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        RunDirectory.open(str(tmp_path / "nothing"), "outputs")
    with pytest.raises(UserError, match="run= is empty"):
        RunDirectory.open("", "outputs")
    with pytest.raises(UserError, match="is no run directory"):
        RunDirectory.open(str(tmp_path), "outputs")


def test_best_is_the_last_checkpoint_of_a_run_without_validation(tmp_path: Path) -> None:
    run = finished(tmp_path)
    with pytest.raises(UserError, match=r"checkpoints of the run: none"):
        run.checkpoint("best")
    run.checkpoints.mkdir()
    (run.checkpoints / "last.ckpt").touch()
    assert run.checkpoint("best").name == "last.ckpt"
    (run.checkpoints / "best.ckpt").touch()
    assert run.checkpoint("best").name == "best.ckpt"
    with pytest.raises(UserError, match=r"other.ckpt \(checkpoints of the run: best.ckpt, last.ckpt\)"):
        run.checkpoint("other.ckpt")


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_named_checkpoint_is_taken_and_a_run_s_best_or_last_otherwise(is_sharded: bool, tmp_path: Path) -> None:
    outputs = str(tmp_path)
    run = finished(tmp_path / "vit" / "1")
    run.checkpoints.mkdir()
    file = run.checkpoints / "epoch_001.ckpt"
    if is_sharded:
        file.with_name("epoch_001.ckpt.1").mkdir()
        file.symlink_to("epoch_001.ckpt.1")
    else:
        file.touch()
    for path in (str(file), str(file.relative_to(tmp_path))):
        for named in (path, f"{path}/") if is_sharded else (path,):
            assert RunDirectory.open(named, outputs).path == run.path
            assert run.checkpoint(checkpoint_named(named, outputs, "best")) == file
    for other in (run.path, run.checkpoints, run.checkpoints / "nothing.ckpt", "vit/1"):
        assert checkpoint_named(str(other), outputs, "best") == "best"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    write_text(file, "old")

    def fail_halfway() -> None:
        with replacing(file) as temporary:
            temporary.write_text("ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
    assert file.read_text() == "old"


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("kept")
    for name in ("file.json", f".file.json.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(mine)
    write_text(tmp_path / "file.json", "new")
    assert mine.read_text() == "kept"
    assert (tmp_path / "file.json").read_text() == "new"


def test_older_results_are_renamed_and_none_is_lost(tmp_path: Path) -> None:
    for number in range(3):
        set_aside(tmp_path / "result.json")
        write_text(tmp_path / "result.json", json.dumps(number))
    assert json.loads((tmp_path / "result.json").read_text()) == 2
    assert sorted(json.loads(p.read_text()) for p in tmp_path.iterdir()) == [0, 1, 2]


def test_an_earlier_version_s_epochs_are_counted_from_one(tmp_path: Path) -> None:
    write_text(tmp_path / "manifest.json", '{"status": "finished", "resumed": [{"epoch": 0, "step": 3}]}')
    write_text(tmp_path / "metrics.csv", "epoch,step,val/acc\n0,5,0.5\n1,10,\n")
    write_text(tmp_path / "metrics.json", '{"epoch": 0, "step": 5, "seconds": 123456.7, "val/acc": 0.9559999704360962}')
    run = RunDirectory(tmp_path)
    assert run.manifest()["resumed"] == [{"epoch": 1, "step": 3}]
    assert run.epoch_rows() == [{"epoch": 1, "step": 5, "val/acc": 0.5}, {"epoch": 2, "step": 10}]
    assert run.final_metrics() == {"epoch": 1, "step": 5, "seconds": 123456.7, "val/acc": 0.956}

    run.reopen({"epoch": 2, "step": 10})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["format"], [entry["epoch"] for entry in manifest["resumed"]]) == (2, [1, 2])
    assert run.manifest() == manifest
    assert not run.final_metrics()  # set aside: the run is not finished any more


def test_metrics_are_written_with_the_fewest_digits_that_give_the_same_float32(tmp_path: Path) -> None:
    values = {"val/acc": torch.tensor(0.956).item(), "val/loss": torch.tensor(1 / 3).item(), "lr": 2.5e-5}
    write_epochs(tmp_path / "metrics.csv", [{"epoch": 1, "step": 5, "seconds": 1.234, **values}], list(values))
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1] == "1,5,1.234,0.956,0.33333334,2.5e-05"
    (row,) = RunDirectory(tmp_path).epoch_rows()
    assert torch.equal(torch.tensor(row["val/loss"]), torch.tensor(1 / 3))
