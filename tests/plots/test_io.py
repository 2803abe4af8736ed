import logging
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_classifier import trainer

from vitlab.plots import publish, published

ABOUT = {"tag": "test/line", "title": "A line: 5 € at $x", "caption": "Up is better."}


def line(last: float = 1.0) -> Figure:
    figure = Figure(figsize=(4, 3))
    figure.add_subplot(title="5 € at $x").plot([0, last])
    return figure


def make(tmp_path: Path, **options: Any) -> Any:
    return trainer(default_root_dir=str(tmp_path), logger=TensorBoardLogger(tmp_path, "", "tensorboard"), **options)


def test_a_figure_lands_in_the_folder_and_in_the_dashboard(tmp_path: Path) -> None:
    run = make(tmp_path)
    publish(run, "20_line", line, **ABOUT, step=7)
    publish(run, "10_other", line, **{**ABOUT, "title": "Other"}, step=7)
    first, second = published(tmp_path)
    assert (first.file.name, first.title) == ("10_other.png", "Other")
    assert (second.title, second.caption, second.tag) == (ABOUT["title"], ABOUT["caption"], "test/line")
    assert Image.open(second.file).size == (600, 450)
    run.logger.save()
    (shown, _) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("test/line")
    assert (shown.step, shown.width, shown.height) == (7, 600, 450)


def test_a_later_one_takes_the_place_of_the_same_figure(tmp_path: Path) -> None:
    run = make(tmp_path)
    publish(run, "line", line, **ABOUT, step=1)
    before = (tmp_path / "figures" / "line.png").read_bytes()
    publish(run, "line", lambda: line(-1.0), **ABOUT, step=2)
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["line.png"]
    assert (tmp_path / "figures" / "line.png").read_bytes() != before


def broken() -> Figure:
    raise ZeroDivisionError("no images")


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_failure_is_told_with_its_cause_and_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path)
    publish(run, "line", line, **ABOUT, step=1)
    before = (tmp_path / "figures" / "line.png").read_bytes()
    with caplog.at_level(logging.WARNING):
        publish(run, "line", broken, **ABOUT, step=2)
    assert "the figure line is left out: ZeroDivisionError: no images" in caplog.messages
    monkeypatch.setattr(Image.Image, "save", full_disk)
    publish(run, "line", line, **ABOUT, step=3)
    assert any("OSError: [Errno 28] No space left on device" in message for message in caplog.messages)
    assert [file.read_bytes() for file in (tmp_path / "figures").iterdir()] == [before]


def test_the_first_rank_alone_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path)
    monkeypatch.setattr(type(run), "is_global_zero", False)
    publish(run, "line", broken, **ABOUT, step=1)
    assert not (tmp_path / "figures").exists()
