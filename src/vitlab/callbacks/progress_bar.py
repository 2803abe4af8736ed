"""One progress bar for the whole run, and one line an epoch that stays."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitlab.callbacks.time_limit import TimeLimit
from vitlab.data import Batch


class RunProgressBar(ProgressBar):
    """Shows loss, accuracy, images a second and the time left of the run.

    The time left of a run that its clock ends is the clock's. Lightning's bars start anew each epoch and tell the time
    left of that alone. The loss and accuracy shown are those of the epoch so far, read from the device once every
    `refresh_seconds` at most: reading waits for the device.

    Args:
        refresh_seconds: Time between two looks at the metrics.
    """

    def __init__(self, refresh_seconds: float) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self.console = Console(soft_wrap=True)
        self._progress: Progress | None = None
        self._enabled = True
        self._validated = False

    def disable(self) -> None:  # Lightning calls it on all ranks but the first
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled:
            return
        self._last_look = self._started = time.perf_counter()
        self._images = 0
        steps = trainer.estimated_stepping_batches
        self._clock: TimeLimit | None = None
        if steps < float("inf"):
            done = trainer.fit_loop.epoch_loop.batch_progress.total.completed
            self._begin("training", int(steps) * trainer.accumulate_grad_batches, done)
        else:
            self._clock = next((c for c in trainer.callbacks if isinstance(c, TimeLimit)), None)  # type: ignore[attr-defined]
            seconds = int(self._clock.seconds) if self._clock else None
            self._begin("training", seconds, int(self._clock.time_elapsed()) if self._clock else 0)

    def _begin(self, what: str, total: int | None, done: int = 0) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            refresh_per_second=4,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID = self._progress.add_task(what, total=total, completed=done, figures="")
        self._progress.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._progress is None:
            return
        self._images += len(batch.labels) * trainer.world_size
        now = time.perf_counter()
        figures: dict[str, str] = {}
        if now - self._last_look >= self.refresh_seconds:
            loss, accuracy = pl_module.train_metrics_so_far()
            speed = self._images / (now - self._last_look)
            self._images, self._last_look = 0, now
            figures = {"figures": f"loss {loss:.3f}  acc {accuracy:.3f}  {speed:,.0f} img/s"}
        epoch = _position(trainer, trainer.current_epoch + 1)
        moved = {"completed": self._clock.time_elapsed()} if self._clock else {"advance": 1.0}
        self._progress.update(self._task, description=epoch, **moved, **figures)  # type: ignore[arg-type]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._begin("validating", int(sum(trainer.num_val_batches)))
        elif self._progress is not None:
            self._progress.update(self._task, description="validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._images, self._last_look = 0, time.perf_counter()
        self._validated = True
        if trainer.state.fn == "validate":
            self._stop()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn == "validate" and self._progress is not None:
            self._progress.advance(self._task)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._enabled:
            self._begin("testing", int(sum(trainer.num_test_batches)))

    def on_test_batch_end(self, *_: Any) -> None:
        if self._progress is not None:
            self._progress.advance(self._task)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch > 0:
            self._print_epoch(trainer, trainer.current_epoch)
        self._validated = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._print_epoch(trainer, trainer.current_epoch)
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _print_epoch(self, trainer: pl.Trainer, epochs: int) -> None:
        """Prints the last epoch's line: by the next one's start, Lightning has all of its metrics."""
        if self._progress is None or "train/loss" not in trainer.callback_metrics:
            return
        figures = epoch_line(trainer.callback_metrics, ("train", "val") if self._validated else ("train",))
        minutes, seconds = divmod(round(time.perf_counter() - self._started), 60)
        self.console.print(
            f"{_position(trainer, epochs)}  {figures}  {minutes}:{seconds:02d}",
            highlight=False,
        )

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _position(trainer: pl.Trainer, epochs: int) -> str:
    """`epoch   3/30`, or `epoch   3 step   250/500` of a run whose length is given in steps."""
    if (trainer.max_epochs or -1) > 0:
        return f"epoch {epochs:>3}/{trainer.max_epochs}"
    max_steps: Any = trainer.lightning_module.max_steps
    steps = f"/{max_steps}" if max_steps > 0 else ""
    return f"epoch {epochs:>3} step {trainer.global_step:>5}{steps}"


def epoch_line(metrics: Mapping[str, Any], splits: Sequence[str]) -> str:
    """`train loss 1.234 acc 0.567  val loss ...  890 img/s  data wait 0.4%  1.4 GiB` of the metrics that are there."""
    parts = []
    for split in splits:
        if f"{split}/loss" in metrics:
            parts.append(f"{split} loss {metrics[f'{split}/loss']:.4f} acc {metrics[f'{split}/acc']:.4f}")
        if f"{split}/acc_ema" in metrics:
            parts.append(f"ema loss {metrics[f'{split}/loss_ema']:.4f} acc {metrics[f'{split}/acc_ema']:.4f}")
    if "images_per_second" in metrics:
        parts.append(f"{metrics['images_per_second']:,.0f} img/s")
    if "mfu" in metrics:
        parts.append(f"{metrics['mfu']:.0%} MFU")
    if "data_wait" in metrics:
        parts.append(f"data wait {metrics['data_wait']:.1%}")
    if "memory_gib" in metrics:
        parts.append(f"{metrics['memory_gib']:.1f} GiB")
    if metrics.get("skipped_steps"):
        parts.append(f"{metrics['skipped_steps']:.0f} steps skipped")
    return "  ".join(parts)
