"""Test reading runs from their directories and from the jobs of a sweep."""

from pathlib import Path

import pytest
from sweeps.runs import write_record, write_run

from vitlab.errors import UserError
from vitlab.leaderboard.results import read_result, read_results
from vitlab.runs.directory import RunDirectory


def test_a_finished_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "3", "optimizer.lr=0.5", "seed=4", val=0.7, test=0.6, epochs=4)
    result = read_result(run)
    assert (result.status, result.seed, result.settings["optimizer.lr"]) == ("finished", 4, 0.5)
    assert (result.metrics["val/acc"], result.metrics["test/acc"], result.seconds) == (0.7, 0.6, 60.0)
    assert [row["epoch"] for row in result.epochs] == [1, 2, 3, 4]
    assert "mfu" not in result.epochs[0]  # an empty cell
    assert str(tmp_path) not in str(result.settings)


def test_the_duration_includes_training_before_a_resume(tmp_path: Path) -> None:
    """metrics.json has the seconds of the last process alone, metrics.csv those of all."""
    assert read_result(write_run(tmp_path, epochs=9)).seconds == 90.0


@pytest.mark.parametrize("status", ["running", "failed", "interrupted", "checked"])
def test_unfinished_runs_have_the_status_of_their_manifest(tmp_path: Path, status: str) -> None:
    result = read_result(write_run(tmp_path, status=status))
    assert result.status == status
    assert result.metrics == {}


def test_all_runs_below_the_folders_each_once_in_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write_run(tmp_path / "sweep" / str(number))
    write_run(tmp_path / "vit_tiny" / "2026-01-01_00-00-00")
    found = read_results([tmp_path, tmp_path / "sweep", tmp_path / "sweep" / "9"])
    paths = [str(result.path.relative_to(tmp_path)) for result in found]
    assert paths == ["sweep/1", "sweep/9", "sweep/10", "vit_tiny/2026-01-01_00-00-00"]


def test_only_a_sweep_s_earlier_attempts_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "earlier" / "a")
    write_run(tmp_path / "sweep" / "0")
    write_run(tmp_path / "sweep" / "earlier" / "0_2026")
    write_record(tmp_path / "sweep", {"number": 0, "status": "done"})
    assert [str(r.path.relative_to(tmp_path)) for r in read_results([tmp_path])] == ["earlier/a", "sweep/0"]
    assert len(read_results([tmp_path / "sweep" / "earlier"])) == 1  # asked for


def test_jobs_without_a_directory_are_listed(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    job = {"number": 1, "overrides": ["seed=1"], "status": "failed", "reason": "exit status 1: ImportError"}
    write_record(tmp_path, {"number": 0, "status": "done"}, job)
    first, second = read_results([tmp_path])
    assert first.status == "finished"
    assert (second.path, second.status, second.reason) == (tmp_path / "1", "failed", "exit status 1: ImportError")
    assert second.overrides == ["seed=1"]


@pytest.mark.parametrize(
    ("manifest", "job", "expected"),
    [
        ("running", "failed", "failed"),  # it was killed
        ("running", "running", "running"),
        ("interrupted", "pruned", "pruned"),
        ("finished", "pruned", "pruned"),
        ("finished", "running", "finished"),  # the launcher has not seen it yet
        ("running", "done", "running"),
    ],
)
def test_the_sweep_s_status_of_a_job_completes_its_manifest(
    tmp_path: Path, manifest: str, job: str, expected: str
) -> None:
    write_run(tmp_path / "0", status=manifest)
    write_record(tmp_path, {"number": 0, "status": job})
    assert read_results([tmp_path])[0].status == expected


def test_the_reason_is_the_last_error_in_the_log(tmp_path: Path) -> None:
    run = write_run(tmp_path, status="failed")
    log = "ValueError: an earlier one\nTraceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out\nthe end\n"
    (run / "run.log").write_text(log)
    result = read_result(run)
    assert result.reason == "torch.OutOfMemoryError: CUDA out"
    assert result.log == run / "run.log"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("manifest.json", "{"),
        ("manifest.json", "[]"),
        ("metrics.json", '{"val/acc":'),
        ("config.yaml", "a: [1"),
        ("config.yaml", "just words"),
        ("config.yaml", "name: x"),
        ("metrics.json", '{"val/acc": null}'),
        (".hydra/hydra.yaml", "hydra: {runtime: {choices: 3}}"),
        (".hydra/hydra.yaml", "- 1"),
        ("metrics.csv", "epoch,val/acc\n0,many\n"),
        ("run.log", "\0\xff"),
    ],
)
def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path, file: str, content: str) -> None:
    write_run(tmp_path / "0")
    (write_run(tmp_path / "1") / file).write_text(content, encoding="latin-1")
    sound, damaged = read_results([tmp_path])
    assert sound.status == "finished"
    assert damaged.status == ("finished" if file == "run.log" else "unreadable")


def test_a_run_killed_before_its_manifest_was_written(tmp_path: Path) -> None:
    RunDirectory(tmp_path).manifest_file.touch()
    assert read_result(tmp_path).status == "failed"


def test_a_finished_run_without_metrics_counts_as_failed(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "metrics.json").unlink()
    assert read_result(run).status == "failed"


def test_folders_without_runs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_results([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="there is no run in"):
        read_results([tmp_path])
    (tmp_path / "sweep.json").write_text('{"arguments": [], "cwd": "", "jobs": 3}')
    with pytest.raises(UserError, match=r"cannot read .*sweep\.json"):
        read_results([tmp_path])
