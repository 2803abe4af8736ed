"""Read the files of a run directory for its report."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from vitlab.config.ranges import mode_of
from vitlab.plots.classification import wilson_interval
from vitlab.runs.directory import RunDirectory
from vitlab.runs.hparams import Setting, data_set, hparams_of

Row = dict[str, float]


@dataclass(frozen=True)
class RunSummary:
    """The files of a run as plain data.

    Attributes:
        config, manifest: As in the files.
        epochs: Rows of `metrics.csv`, without empty cells.
        final: Of `metrics.json`; empty if the run is not finished.
        details: Of `test_details.json`; empty without it.
    """

    config: Any
    manifest: dict[str, Any]
    epochs: list[Row]
    final: dict[str, Any]
    details: dict[str, Any]

    @property
    def best(self) -> Row | None:
        """The epoch whose weights were kept: the best so far by the monitored metric, else the last."""
        if not self.epochs:
            return None
        if "epoch" in self.final:
            return next((row for row in self.epochs if row["epoch"] == self.final["epoch"]), self.epochs[-1])
        metric = self.config.checkpoint.monitor
        mode = mode_of(metric, self.config.checkpoint.get("mode"))
        rows = [row for row in self.epochs if metric in row]
        if not rows:
            return self.epochs[-1]
        return max(rows, key=lambda row: row[metric] if mode == "max" else -row[metric])

    def epochs_at(self, row: Row) -> float:
        """Epochs of training at a row's end; not a whole number if a time or step limit ended the last epoch early."""
        if row is not self.epochs[-1]:
            return row["epoch"]
        before = self.epochs[-2]["step"] if len(self.epochs) > 1 else 0.0
        steps = row["step"] - before + row.get("skipped_steps", 0)
        batches = self.used("train") // int(self.config.data.batch_size)
        whole = max(1, -(-batches // int(self.config.trainer.accumulate_grad_batches)))
        return round(row["epoch"] - 1 + min(1.0, steps / whole), 2)

    @property
    def length(self) -> str:
        """The length of the training in words: `12 epochs`."""
        return "1 epoch" if (count := self.epochs_at(self.epochs[-1])) == 1 else f"{count:g} epochs"

    @property
    def time_limited(self) -> bool:
        return OmegaConf.select(self.config, "trainer.max_time") is not None

    @property
    def patch_dropout(self) -> float:
        """Fraction of the patches that are dropped during training."""
        return float(OmegaConf.select(self.config, "model.patch_dropout") or 0.0)

    @property
    def training_images(self) -> str:
        """The differences between training images and those of an evaluation: `augmented, mixed`."""
        nodes = (OmegaConf.select(self.config, "augment") or {}).items()
        acting = {name for name, node in nodes if node is not None and node.get("p") != 0}
        differences = {
            "augmented": bool(acting - {"mixing"}),
            "mixed": "mixing" in acting,
            f"{self.patch_dropout:.0%} of their patches dropped": self.patch_dropout > 0,
        }
        return ", ".join(words for words, true in differences.items() if true) or "not augmented"

    @property
    def suffix(self) -> str:
        """Ends the names of the metrics of the weights by which epochs were selected."""
        return "_ema" if self.config.checkpoint.monitor.endswith("_ema") else ""

    @property
    def classes(self) -> list[str]:
        return list(self.config.data.classes)

    @property
    def hparams(self) -> dict[str, Setting]:
        return hparams_of(OmegaConf.to_container(self.config))  # type: ignore[arg-type]

    @property
    def data_set(self) -> str:
        return data_set(self.config)

    def images(self, split: str) -> int:
        """Number of images in the split."""
        return int(self.manifest.get("data", {}).get(split, {}).get("images", 0))

    def used(self, split: str) -> int:
        """Number of the split's images that the run uses: fewer if `trainer.limit_<split>_batches` is set."""
        images = self.images(split)
        limit = OmegaConf.select(self.config, f"trainer.limit_{split}_batches")
        if limit is None or not images:
            return images
        batch = self.config.data.batch_size if split == "train" else self.config.data.eval_batch_size
        batches = limit if isinstance(limit, int) else int(limit * -(-images // batch))
        return min(images, batches * batch)


def accuracy_interval(accuracy: float, images: int) -> str:
    """Wilson's 95% interval of an accuracy that was measured on so many images: `94.1% to 96.7%`."""
    low, high = wilson_interval(np.array([accuracy]), np.array([images]))
    return f"{low[0]:.1%} to {high[0]:.1%}"


def read_run_summary(run: RunDirectory) -> RunSummary:
    manifest = run.manifest()
    finished = manifest.get("status") == "finished"
    return RunSummary(
        config=run.config(),
        manifest=manifest,
        epochs=run.epoch_rows(),
        final=run.final_metrics() if finished else {},
        details=_json(run, "test_details.json") if finished else {},
    )


def _json(run: RunDirectory, name: str) -> dict[str, Any]:
    file = run.path / name
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return content
