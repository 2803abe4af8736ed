import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_classifier import trainer

from vitlab.callbacks.figures import publish
from vitlab.plots.io import FigureText, read_figures

TEXT = FigureText("test/line", "A line: 5 € at $x", "Up is better.")


def line(last: float = 1.0) -> Figure:
    figure = Figure(figsize=(4, 3))
    figure.add_subplot(title="5 € at $x").plot([0, last])
    return figure


def make(tmp_path: Path, **options: Any) -> Any:
    return trainer(default_root_dir=str(tmp_path), logger=TensorBoardLogger(tmp_path, "", "tensorboard"), **options)


def test_a_figure_is_written_to_the_folder_and_the_dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path)
    monkeypatch.setattr(type(run), "global_step", 7)
    publish(run, "20_line", TEXT, line)
    publish(run, "10_other", replace(TEXT, title="Other"), line)
    first, second = read_figures(tmp_path)
    assert (first.file.name, first.title) == ("10_other.png", "Other")
    assert (second.title, second.caption, second.tag) == (TEXT.title, TEXT.caption, "test/line")
    assert Image.open(second.file).size == (600, 450)
    run.logger.save()
    (shown, _) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("view/test/line")
    assert (shown.step, shown.width, shown.height) == (7, 600, 450)


def test_a_later_figure_replaces_the_earlier_one(tmp_path: Path) -> None:
    run = make(tmp_path)
    publish(run, "line", TEXT, line)
    before = (tmp_path / "figures" / "line.png").read_bytes()
    publish(run, "line", TEXT, lambda: line(-1.0))
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["line.png"]
    assert (tmp_path / "figures" / "line.png").read_bytes() != before


def broken() -> Figure:
    raise ZeroDivisionError("no images")


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_failure_becomes_a_warning_with_its_cause(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path)
    publish(run, "line", TEXT, line)
    before = (tmp_path / "figures" / "line.png").read_bytes()
    with caplog.at_level(logging.WARNING):
        publish(run, "line", TEXT, broken)
    assert "the figure line is left out: ZeroDivisionError: no images" in caplog.messages
    monkeypatch.setattr(Image.Image, "save", full_disk)
    publish(run, "line", TEXT, line)
    assert any("OSError: [Errno 28] No space left on device" in message for message in caplog.messages)
    assert [file.read_bytes() for file in (tmp_path / "figures").iterdir()] == [before]


def test_only_the_first_rank_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path)
    monkeypatch.setattr(type(run), "is_global_zero", False)
    publish(run, "line", TEXT, broken)
    assert not (tmp_path / "figures").exists()
