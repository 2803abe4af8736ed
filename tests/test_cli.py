import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL_RUN, Command

from vitlab.errors import file_error
from vitlab.runs.imports import fast_imports

BEGIN = """
import gc
from vitlab.runs.imports import fast_imports
from vitlab.errors import file_error
with fast_imports():
    import torch
    assert not gc.isenabled()
print(gc.isenabled(), gc.get_freeze_count() > 50_000)
"""


def test_garbage_is_collected_once_the_libraries_are_there() -> None:
    result = subprocess.run([sys.executable, "-c", BEGIN], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True"]


def test_a_process_that_has_them_keeps_collecting() -> None:
    frozen = gc.get_freeze_count()
    with fast_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_a_notebook_s_choice_of_how_to_draw_is_not_ours(
    script: str, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # not installed here
    assert in_process(script, "--help").returncode == 0
    assert os.environ["MPLBACKEND"] == "agg"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["train.py", *SMALL_RUN], "hydra.run.dir="),
        (["train.py", *SMALL_RUN, "hydra.run.dir=outputs/run"], "hydra.run.dir="),
        (["train.py", *SMALL_RUN, f"hydra.run.dir={'x' * 300}"], "hydra.run.dir="),
        (["train.py", "-m", *SMALL_RUN, "seed=0,1"], "hydra.sweep.dir="),
        (["train.py", "reproduce=RUN"], "outputs="),
        (["predict.py", "run=RUN", "out=outputs/x", "RUN/figures"], "out="),
        (["-m", "vitlab.explain", "run=RUN", "RUN/figures"], "out="),
        (["-m", "vitlab.export", "run=RUN", "out=outputs/x"], "out="),
        (["-m", "vitlab.augmentations", "data=synthetic"], "out="),
        (["-m", "vitlab.bench", "name=start", "data=synthetic"], "out="),
        (["-m", "vitlab.leaderboard", "RUN", "out=outputs/x"], "out="),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_where_nothing_can_be_written_a_sentence_says_so(
    arguments: list[str], key: str, in_process: Command, tmp_path: Path, small_run: Path
) -> None:
    (tmp_path / "outputs").touch()
    result = in_process(*(argument.replace("RUN", str(small_run)) for argument in arguments))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: can")
    assert key in last


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_a_disk_that_fails_later_gives_a_sentence_too(
    script: str, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "x/.lock")

    monkeypatch.setattr("vitlab.resume.resume", fail)
    monkeypatch.setattr("vitlab.predict.predict", fail)
    monkeypatch.setattr("vitlab.predict.check_top_k", fail)
    result = in_process(script, "resume=x" if script == "train.py" else "images=x")
    assert (result.returncode, result.stderr) == (2, "error: can't write x/.lock (Read-only file system)\n")


def test_which_errors_are_of_the_disk() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = ValueError("Unable to configure handler")
    wrapped.__cause__ = full
    assert file_error(full) == file_error(wrapped) == "can't write (No space left on device)"
    assert (
        file_error(FileNotFoundError(errno.ENOENT, "No such file"))
        == file_error(ValueError())
        == file_error(None)
        == ""
    )
