"""Show one progress bar for the whole run and print one line per epoch."""

import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from rich.progress import BarColumn, Progress, TaskID, TimeRemainingColumn
from rich.text import Text

from vitlab.callbacks.time_limit import TimeLimit
from vitlab.data import Batch
from vitlab.metrics import metric_kind
from vitlab.runs.console import show, terminal
from vitlab.runs.progress import progress_bar

# Heading, width, metric and format of the columns, the most important first: the last ones are left out if the terminal
# is too narrow.
COLUMNS = (
    ("train loss", 10, "train/loss", "{:.4f}"),
    ("acc", 6, "train/acc", "{:.1%}"),
    ("val loss", 8, "val/loss", "{:.4f}"),
    ("acc", 6, "val/acc", "{:.1%}"),
    ("EMA acc", 7, "val/acc_ema", "{:.1%}"),
    ("skipped", 7, "skipped_steps", "{:.0f}"),
    ("img/s", 7, "images_per_second", "{:,.0f}"),
    ("data wait", 9, "data_wait", "{:.1%}"),
    ("memory", 9, "memory_gib", "{:.1f} GiB"),
    ("MFU", 4, "mfu", "{:.0%}"),
)
TIME, MARK = 8, "  best"  # the last two columns


class RunProgressBar(ProgressBar):
    """Shows loss, accuracy, images per second and the time left of the whole run.

    If `trainer.max_time` ends the run, the time left is that of the limit. Loss and accuracy are those of the epoch so
    far; reading them waits for the device.

    Args:
        refresh_seconds: Least time between two readings of loss and accuracy.
        metrics: Further metrics to show in the line of an epoch, such as `val/f1`; the one that selects the best
            epoch is always shown.
    """

    def __init__(self, refresh_seconds: float, metrics: Sequence[str] = ()) -> None:
        super().__init__()
        self.metrics = metrics
        self.refresh_seconds = refresh_seconds
        self.console = terminal()
        self._progress: Progress | None = None
        self._enabled = True
        self._validated = False
        self._heading = ""
        self._best: float | None = None

    def disable(self) -> None:  # Lightning calls it on all ranks but 0
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self._enabled:
            return
        self._last_reading = self._started = time.perf_counter()
        self._images = 0
        self._best = _best_score(trainer)
        self._limit: TimeLimit | None = None
        steps = pl_module.last_step()
        if steps < float("inf"):
            done = trainer.fit_loop.epoch_loop.batch_progress.total.completed
            self._begin("training", steps * trainer.accumulate_grad_batches, done)
        elif limit := next((c for c in trainer.callbacks if isinstance(c, TimeLimit)), None):  # type: ignore[attr-defined]
            self._limit = limit
            self._begin("training", limit.seconds, limit.time_elapsed())
        else:
            self._begin("training", None)

    def _begin(self, what: str, total: float | None, done: float = 0) -> None:
        columns = "{task.description}", BarColumn(None), "{task.fields[metrics]}", TimeRemainingColumn(), "left"
        self._progress = progress_bar(*columns, console=self.console)
        self._task: TaskID = self._progress.add_task(what, total=total, completed=int(done), metrics="")
        self._progress.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        if self._progress is None:
            return
        self._images += len(batch.labels) * trainer.world_size
        changed: dict[str, Any] = {"completed": self._limit.time_elapsed()} if self._limit else {"advance": 1}
        seconds = time.perf_counter() - self._last_reading
        if seconds >= self.refresh_seconds:
            loss, accuracy = pl_module.train_metrics_so_far()
            changed["metrics"] = f"loss {loss:.3f}  acc {accuracy:.1%}  {self._images / seconds:,.0f} img/s"
            self._images, self._last_reading = 0, self._last_reading + seconds
        position = f"epoch {_position(trainer, trainer.current_epoch + 1)[1].strip()}"
        self._progress.update(self._task, description=position, **changed)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._begin("validating", sum(trainer.num_val_batches))
        elif self._progress is not None:
            self._progress.update(self._task, description="validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._images, self._last_reading = 0, time.perf_counter()
        self._validated = True
        if trainer.state.fn == "validate":
            self._stop()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._enabled:
            self._begin("testing", sum(trainer.num_test_batches))

    def _advance(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.state.fn != "fit" and self._progress is not None:
            self._progress.advance(self._task)

    on_validation_batch_end = on_test_batch_end = _advance

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch > 0:
            self._print_epoch(trainer, trainer.current_epoch)
        self._validated = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._print_epoch(trainer, trainer.current_epoch)
        self._stop()

    def _stop(self, *_: Any, **__: Any) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    on_test_end = on_exception = _stop

    def _columns(self, trainer: pl.Trainer) -> list[tuple[str, int, str, str]]:
        selecting = next((c.monitor for c in trainer.callbacks if isinstance(c, ModelCheckpoint)), None)  # type: ignore[attr-defined]
        asked = [*self.metrics, *([selecting] if selecting else [])]
        further = [name for name in dict.fromkeys(asked) if name not in {column[2] for column in COLUMNS}]
        return [*COLUMNS[:5], *map(_further_column, further), *COLUMNS[5:]]

    def _print_epoch(self, trainer: pl.Trainer, epoch: int) -> None:
        """Print the line of the last epoch: when the next one starts, Lightning has all of its metrics."""
        metrics = trainer.callback_metrics
        if self._progress is None or "train/loss" not in metrics:
            return
        heading, line = _position(trainer, epoch)
        room = self.console.width - len(f"{line}  {'':{TIME}}{MARK}")
        columns = [column for column in self._columns(trainer) if column[2] in metrics]
        while sum(width + 2 for _, width, _, _ in columns) > room:
            columns.pop()
        for title, width, metric, text in columns:
            known = self._validated or not metric.startswith("val/")  # Lightning keeps an earlier epoch's validation
            heading += f"  {title:>{width}}"
            line += f"  {text.format(metrics[metric]) if known else '':>{width}}"
        if heading != self._heading:  # the first line, or one with a metric that those above do not have
            self._heading = heading
            show(Text(f"{heading}  {'time':>{TIME}}", "bold"), console=self.console)
        seconds = round(time.perf_counter() - self._started)
        line += f"  {seconds // 3600:>2}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        before, self._best = self._best, _best_score(trainer)
        show(Text.assemble(line, (MARK if self._best != before else "", "green")), console=self.console)


def _further_column(metric: str) -> tuple[str, int, str, str]:
    kind, title = metric_kind(metric), metric.removeprefix("val/")
    return title, max(7, len(title)), metric, "{:.1%}" if kind and kind.unit == "%" else "{:.4f}"


def _position(trainer: pl.Trainer, epoch: int) -> tuple[str, str]:
    """A heading, and below it ` 3/30`, or epoch and step if the length of the run is not given in epochs."""
    if (trainer.max_epochs or -1) > 0:
        text = f"{epoch:>{len(str(trainer.max_epochs))}}/{trainer.max_epochs}".rjust(5)
        return f"{'epoch':>{len(text)}}", text
    module: Any = trainer.lightning_module
    step = f"{trainer.global_step:,}" + (f"/{module.max_steps:,}" if module.max_steps > 0 else "")
    width = max(7, 2 * len(f"{module.max_steps:,}") + 1)
    return f"epoch  {'step':>{width}}", f"{epoch:>5}  {step:>{width}}"


def _best_score(trainer: pl.Trainer) -> float | None:
    """The monitored metric of the best epoch so far; None if no epoch is selected."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    score = next((c.best_model_score for c in callbacks if isinstance(c, ModelCheckpoint)), None)
    return None if score is None else float(score)
