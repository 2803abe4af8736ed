import json
import os
from pathlib import Path

import pytest

from vitlab.errors import UserError
from vitlab.files import replacing, set_aside, write_text
from vitlab.runs.directory import RunDirectory


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


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        RunDirectory.open(str(tmp_path / "nothing"), "outputs")
    with pytest.raises(UserError, match="is no run directory"):
        RunDirectory.open(str(tmp_path), "outputs")


def test_best_of_a_run_without_selection_is_its_last(tmp_path: Path) -> None:
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


def test_older_results_are_set_aside_and_none_is_lost(tmp_path: Path) -> None:
    for number in range(3):
        set_aside(tmp_path / "result.json")
        write_text(tmp_path / "result.json", json.dumps(number))
    assert json.loads((tmp_path / "result.json").read_text()) == 2
    assert sorted(json.loads(p.read_text()) for p in tmp_path.iterdir()) == [0, 1, 2]
