"""Lines on the terminal, and the same in run.log."""

import logging
from pathlib import Path

import pytest
from conftest import SMALL_RUN, Command

from vitlab.preflight import CheckResult, Preflight, Status
from vitlab.report.terminal import print_preflight
from vitlab.runs.console import show

OK = CheckResult(check="labels", status=Status.OK, figure="10 classes [a]")
FAILED = CheckResult(check="head", status=Status.FAILED, figure="11 logits", meaning="too many classes")


def test_preflight_is_one_line_if_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    print_preflight(Preflight([OK, OK], "cpu", "32-true", 0.41), every_check=False)
    assert capsys.readouterr().out == "preflight: 2 checks passed in 0.4 s\n"


def test_preflight_lists_failed_checks_and_all_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    preflight = Preflight([OK, FAILED], "cpu", "32-true", 0.41)
    print_preflight(preflight, every_check=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["failed", "too", "preflight:"]
    assert lines[-1] == "preflight: 1 checks passed, 1 failed in 0.4 s"
    print_preflight(preflight, every_check=True)
    assert capsys.readouterr().out.splitlines()[0].split() == ["ok", "labels", "10", "classes", "[a]"]


def test_text_is_printed_and_logged_as_it_is(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="vitlab")
    show("outputs/[red]:smile:[/]")
    assert capsys.readouterr().out == "outputs/[red]:smile:[/]\n"
    assert caplog.messages == ["outputs/[red]:smile:[/]"]


def test_run_log_has_the_traceback_of_an_unexpected_error(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("vitlab.experiment.fit_and_test", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        in_process("train.py", *SMALL_RUN, "preflight=off", "hydra.run.dir=run")
    log = (tmp_path / "run" / "run.log").read_text()
    assert "Traceback (most recent call last):" in log
    assert "RuntimeError: a bug" in log
    assert "GPU available" not in log  # no chatter of other libraries
