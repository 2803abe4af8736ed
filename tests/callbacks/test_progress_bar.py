"""Epoch lines have fixed columns and fit the terminal."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from vitlab.callbacks import RunProgressBar

METRICS = {
    **{"train/loss": 1.5, "train/acc": 0.456, "val/loss": 1.25, "val/acc": 0.5, "val/acc_ema": 0.625},
    **{"images_per_second": 12345.0, "data_wait": 0.004, "memory_gib": 1.4, "mfu": 0.41},
}


def run(metrics: list[dict[str, float]], scores: list[float], max_steps: int = -1, **length: int) -> None:
    """Train as many epochs as there are metrics; after each, the best epoch so far has the score."""
    selector = ModelCheckpoint()
    last_step = min(100, max_steps) if max_steps > 0 else 100
    module: Any = SimpleNamespace(max_steps=max_steps, last_step=lambda: last_step)
    trainer = SimpleNamespace(
        callbacks=[selector],
        current_epoch=0,
        global_step=0,
        accumulate_grad_batches=1,
        fit_loop=SimpleNamespace(
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(completed=0)))
        ),
        state=SimpleNamespace(fn="fit"),
        callback_metrics={},
        lightning_module=module,
        **{"max_epochs": len(metrics), **length},
    )
    bar = RunProgressBar(refresh_seconds=1.0)
    bar.on_train_start(trainer, module)  # type: ignore[arg-type]
    for epoch, (row, score) in enumerate(zip(metrics, scores, strict=True)):
        bar.on_train_epoch_start(trainer, module)  # type: ignore[arg-type]
        trainer.callback_metrics |= row  # Lightning keeps an earlier epoch's
        if "val/acc" in row:
            selector.best_model_score = torch.tensor(score)
            bar.on_validation_end(trainer, module)  # type: ignore[arg-type]
        trainer.current_epoch, trainer.global_step = epoch + 1, 10 * (epoch + 1)
    bar.on_train_end(trainer, module)  # type: ignore[arg-type]


def test_lines_have_percentages_and_mark_the_best_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    row = {name: METRICS[name] for name in ("train/loss", "train/acc", "val/loss", "val/acc")}
    only_train = {name: METRICS[name] for name in ("train/loss", "train/acc")}
    run([row, only_train, row, row], [0.5, 0.5, 0.5, 0.75])
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["epoch", "train", "loss", "acc", "val", "loss", "acc", "time"]
    assert lines[0].split() == ["1/4", "1.5000", "45.6%", "1.2500", "50.0%", "0:00:00", "best"]
    assert lines[1].split() == ["2/4", "1.5000", "45.6%", "0:00:00"]  # without validation, not with the last one's
    assert [line.endswith("best") for line in lines] == [True, False, False, True]
    assert {line.index("0:00:00") for line in lines} == {heading.index("time") - 3}


@pytest.mark.parametrize(("width", "last"), [(80, "img/s"), (120, "MFU")])
def test_a_narrow_terminal_gets_the_most_important_columns(
    width: int, last: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    run([METRICS], [0.5], max_epochs=300)
    heading, line = capsys.readouterr().out.splitlines()
    assert max(len(heading), len(line)) <= width
    assert heading.split()[-2] == last
    assert line.endswith("best")


def test_a_run_whose_length_is_given_in_steps_shows_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    run([METRICS], [0.5], max_epochs=-1, max_steps=5000)
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["epoch", "step"]
    assert line.split()[:2] == ["1", "10/5,000"]
    assert heading.index("step") + 4 == line.index("10/5,000") + 8
