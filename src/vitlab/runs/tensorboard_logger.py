"""Write a run's curves for TensorBoard, sorted by what one looks at first."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard.writer import SummaryWriter

# What stands before a metric's name, or before the group that its name begins with. TensorBoard sorts tags by name,
# makes a group of those with the same first word, and opens the first two groups: train and val, if all others come
# later. Its HPARAMS table selects the first five tags, and sorts "-" before "/", which its charts do not.
PLACES = {
    "lr": "train/",
    "skipped_steps": "train/",
    "best/": "val-",
    "gradient_norm/": "weights/",
    "lr/": "weights/",
    "update_to_weight/": "weights/",
    "weight_norm/": "weights/",
    "images_per_second": "workload/",
    "data_wait": "workload/",
    "memory_gib": "workload/",
    "mfu": "workload/",
}
IMAGES = "view/"  # what stands before the tag of a figure
VALIDATION = "val"  # folder of the second run


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger, whose event files lie in the run directory: TensorBoard shows its name.

    Validation metrics are a second run, `val/` in it: TensorBoard colours curves by run, so this gives training and
    validation two colours in one chart. Its HPARAMS table is of this second run, whose few metrics fit in its columns.

    Args:
        save_dir: The run directory.
        options: Of both SummaryWriters, such as `purge_step` or `flush_secs`.
    """

    def __init__(self, save_dir: str, **options: Any) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False, **options)
        self.options = options

    @cached_property
    def validation(self) -> SummaryWriter:
        return SummaryWriter(str(Path(self.save_dir) / VALIDATION), **self.options)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            if name == "epoch" or name.startswith("test/"):
                continue  # a straight line; single values, which best/ has too
            writer = self.validation if name.startswith(("val/", "best/")) else self.experiment
            writer.add_scalar(tag_of(name), value, step)

    @rank_zero_only
    def save(self) -> None:  # Lightning's also writes hparams.yaml, which config.yaml replaces
        self.experiment.flush()
        self.validation.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:  # Lightning's closes the file after training: the test would begin another
        self.save()


def tag_of(name: str) -> str:
    """The tag under which TensorBoard shows a metric: `workload/mfu` for `mfu`."""
    group, slash, _ = name.partition("/")
    return PLACES.get(group + slash, "") + name
