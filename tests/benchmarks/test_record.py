"""The record of a benchmark keeps what was measured, whatever happens afterwards."""

import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vitlab.benchmarks.record import Record, Skipped
from vitlab.errors import UserError


def constant(value: float) -> Callable[[int], float]:
    return lambda steps: value


def raising(error: BaseException) -> Callable[[int], float]:
    def variant(steps: int) -> float:
        raise error

    return variant


def saved(record: Record) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(record.file.read_text())
    return content


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "new" / "x.json", {"machine": "this"})


def test_a_command_killed_in_its_second_variant_keeps_the_first(record: Record) -> None:
    with pytest.raises(KeyboardInterrupt):
        record.measure("speed", {"a": constant(2.0), "b": raising(KeyboardInterrupt())}, 1, 1)
    assert saved(record) == {"machine": "this", "figures": {"speed": {"a": [2.0]}}, "statuses": {}}
    assert "speed" in record.tables.read_text()


def test_a_failing_variant_is_recorded_and_the_others_go_on(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")
    calls = []

    def failing(steps: int) -> float:
        calls.append(steps)
        raise error

    variants = {"a": failing, "b": constant(3.0), "c": raising(Skipped("needs a GPU")), "d": constant(6.0)}
    record.measure("speed", variants, rounds=2, steps=7)
    assert calls == [7]  # not in the second round
    assert saved(record)["figures"] == {"speed": {"b": [3.0, 3.0], "d": [6.0, 6.0]}}
    assert saved(record)["statuses"]["speed"] == {
        "a": "failed: RuntimeError: CUDA out of memory. Tried to allocate 2 GiB",
        "c": "skipped: needs a GPU",
    }
    assert record.failures() == 1
    assert "Traceback" in record.log.read_text()
    assert "2.00" in record.tables.read_text()
    assert "out of memory" in record.tables.read_text()
    assert "out of memory" in capsys.readouterr().out


def test_checks_pass_with_a_remark_or_without(record: Record) -> None:
    record.run("checks", "a", lambda: None)
    record.run("checks", "b", lambda: "loss 2.3")
    record.run("checks", "c", partial(raising(AssertionError("weights differ")), 1))
    passed, remark, failed = saved(record)["statuses"]["checks"].values()
    assert passed.startswith("passed in")
    assert remark.endswith("loss 2.3")
    assert failed.startswith("failed")
    assert "weights differ" in failed


def test_the_end_of_the_time_stops_a_variant_and_skips_the_rest(record: Record) -> None:
    def endless(steps: int) -> float:
        signal.pause()
        return 0.0

    record.measure("speed", {"a": endless, "b": constant(1.0)}, 1, 1, end=time.monotonic() + 0.05)
    statuses = saved(record)["statuses"]["speed"]
    assert statuses["a"].startswith("skipped: not finished")
    assert statuses["b"].startswith("skipped: the time")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize(("there", "out"), [("x.txt", "x.json"), ("x.log", "x.json"), ("y", "x.txt")])
def test_files_that_exist_are_not_overwritten(there: str, out: str, tmp_path: Path) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(UserError, match="choose another"):
        Record(tmp_path / out, {})
    assert (tmp_path / there).read_text() == "mine"
