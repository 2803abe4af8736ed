"""What is printed is what was meant, on any terminal, and a terminal that is gone ends no run."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.table import Table

from vitlab.benchmarks.record import Record
from vitlab.preflight import CheckResult, Preflight, Status
from vitlab.report import terminal
from vitlab.runs import console
from vitlab.runs.console import show
from vitlab.runs.directory import RunDirectory
from vitlab.sweeps.runner import JobSource, SweepDisplay
from vitlab.sweeps.sweep import Job

NAMES = ["run [a]", "[/]", "[bold]x", ":smile:", "[link=x]y[/link]", "größe 日本", "a\\[b]"]
CONFIG = OmegaConf.create({"name": "x", "trainer": {"precision": "32-true"}})


def sweep_display(name: str) -> SweepDisplay:
    job = Job(0, [], Path(name), name=name, status="failed", reason=name, monitor=name)
    return SweepDisplay(f"sweep {name}", JobSource([job]))


def print_sweep(name: str) -> None:
    display = sweep_display(name)
    display.report_change(display.source.jobs[0])
    display.console.print(display._render())


def print_record(name: str) -> None:
    record = Record.__new__(Record)  # without its files
    record.figures, record.statuses = {name: {name: [1.0]}}, {name: {name: "passed"}}
    record.print_tables(console.terminal())


def preflight(name: str) -> Preflight:
    return Preflight([CheckResult(check="x", status=Status.FAILED, figure=name, meaning=name)], "cpu", "32-true", 0.1)


PRINTS: dict[str, Callable[[str], Any]] = {
    "text": show,
    "written": lambda name: terminal.print_written(Path(name)),
    "choice": lambda name: terminal.print_choice(Path(name), {}, "raw"),
    "preflight": lambda name: terminal.print_preflight(preflight(name), every_check=True),
    "interrupted": lambda name: terminal.print_interrupted(CONFIG, RunDirectory(Path("x")), name),
    "resumed": lambda name: terminal.print_resumed(
        OmegaConf.merge(CONFIG, {"name": name}), Path(name), 1, 1, {name: name}
    ),
    "comparison": lambda name: terminal.print_comparison(Path(name), {name: (name, name)}, [name]),
    "evaluation": lambda name: terminal.print_evaluation(
        {"images": 1, "per_class": {name: {"images": 1, "acc": 0.5, "precision": 0.5, "f1": 0.5}}},
        "test",
        1,
        [Path(name)],
    ),
    "sweep": print_sweep,
    "benchmark": print_record,
}


@pytest.mark.parametrize("where", PRINTS)
@pytest.mark.parametrize("name", NAMES)
def test_user_text_is_printed_as_it_is(where: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    PRINTS[where]("NAME")
    expected = capsys.readouterr().out.count("NAME")
    PRINTS[where](name)
    assert capsys.readouterr().out.count(name) == expected > 0


def test_a_narrow_terminal_cuts_no_number(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("class", "accuracy", "images")
    table.add_row("a class with a long name", "15.00%", "12,345")
    show(table)
    assert "a class with a long name  15.00%    12,345" in capsys.readouterr().out


PRINT = """
import sys
from vitlab.runs.console import protect_streams, show
protect_streams()
show("größe \\udcff ±")
print("größe", file=sys.stderr)
"""


def run(program: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, **options.pop("env", {})}
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, **options)


@pytest.mark.parametrize(
    ("env", "printed"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"gr\xf6\xdfe \udcff \xb1"),
        ({"PYTHONIOENCODING": "latin-1", "TERM": "dumb"}, b"gr\xf6\xdfe \\udcff \xb1"),
        ({"LC_ALL": "C", "LANG": "C", "COLUMNS": "0"}, "größe ".encode() + b"\xff" + " ±".encode()),
        ({"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}, "größe ".encode() + b"\xff" + " ±".encode()),
    ],
)
def test_any_terminal_takes_any_text(env: dict[str, str], printed: bytes) -> None:
    result = run(PRINT, env=env)
    assert (result.returncode, result.stdout) == (0, printed + b"\n")
    assert result.stderr.startswith(b"gr")


WORK = """
import os, sys
from vitlab.runs.console import protect_streams, show
protect_streams()
for _ in range(3000):
    show("a line for a reader who may have gone")
print("the same", file=sys.stderr, flush=True)
file = open("file", "w")
assert file.fileno() > 2
file.write("done")
"""


@pytest.mark.parametrize("streams", ["| head -1", "> /dev/full 2>&1", ">&-", "<&- >&- 2>&-"])
def test_work_goes_on_when_nobody_reads(streams: str, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(WORK)
    line = f"{sys.executable} work.py {streams}"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Error" not in result.stderr
    assert (tmp_path / "file").read_text() == "done"


def test_work_goes_on_when_the_terminal_vanishes(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(WORK.replace("\nfor", "\ninput()\nfor"))
    ours, theirs = pty.openpty()
    talk, wait = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "work.py"], cwd=tmp_path, stdin=talk, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    os.close(ours)  # from now on each write fails with EIO
    os.write(wait, b"\n")
    assert process.wait(timeout=60) == 0
    os.close(talk)
    os.close(wait)
    assert (tmp_path / "file").read_text() == "done"
