"""Read the files of a run directory for its report."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from vitlab.metrics import mode_of
from vitlab.plots.classification import wilson_interval
from vitlab.runs.directory import Row, RunDirectory
from vitlab.runs.hparams import Setting, data_set, hparams_of


@dataclass(frozen=True)
class RunSummary:
    """The files of a run as plain data."""

    config: Any
    manifest: dict[str, Any]
    epochs: list[Row]  # of `metrics.csv`, without empty cells
    final: dict[str, Any]  # of `metrics.json`; empty if the run is not finished
    details: dict[str, Any]  # of `test_details.json`; empty without it
    checks: list[dict[str, str]] = field(default_factory=list)  # of `preflight.json`
    resumable: bool = True  # it has a checkpoint to resume from

    @property
    def best(self) -> Row:
        """The epoch whose weights were kept: the best so far by the monitored metric, else the last; empty without
        any."""
        if not self.epochs:
            return {}
        if "epoch" in self.final:
            return next((row for row in self.epochs if row["epoch"] == self.final["epoch"]), self.epochs[-1])
        metric = self.config.checkpoint.monitor
        better = max if mode_of(metric, self.config.checkpoint.get("mode")) == "max" else min
        rows = [row for row in self.epochs if metric in row]
        return better(rows, key=lambda row: row[metric], default=self.epochs[-1])

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
        """The number of epochs; one that was not finished does not count."""
        if not self.epochs:
            return "less than 1 epoch"
        return "1 epoch" if (count := self.epochs_at(self.epochs[-1])) == 1 else f"{count:g} epochs"

    def setting(self, key: str) -> Any:
        """A value of the config; None if the config lacks the key."""
        return OmegaConf.select(self.config, key)

    @property
    def augmentations(self) -> set[str]:
        """Names of the augmentations that are not turned off."""
        nodes = (self.setting("augment") or {}).items()
        return {name for name, node in nodes if node is not None and node.get("p") != 0}

    @property
    def training_images(self) -> str:
        """The differences between training images and those of an evaluation: `augmented, mixed`."""
        dropped = self.setting("model.patch_dropout") or 0
        words = {
            "augmented": self.augmentations - {"mixing"},
            "mixed": "mixing" in self.augmentations,
            f"{dropped:.0%} of their patches dropped": dropped,
        }
        return ", ".join(word for word, applies in words.items() if applies) or "not augmented"

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

    @property
    def failed_checks(self) -> list[str]:
        """The preflight checks that refused the run."""
        if self.epochs or self.setting("preflight") == "warn":
            return []
        return [check["check"] for check in self.checks if check["status"] == "failed"]

    @property
    def check_counts(self) -> str:
        """The number of preflight checks by result: `20 ok, 1 skipped`."""
        return ", ".join(f"{count} {status}" for status, count in Counter(c["status"] for c in self.checks).items())

    def images(self, split: str) -> int:
        """Number of images in the split."""
        return int(self.manifest.get("data", {}).get(split, {}).get("images", 0))

    def used(self, split: str) -> int:
        """Number of the split's images that the run uses: fewer if `trainer.limit_<split>_batches` is set."""
        images = self.images(split)
        limit = self.setting(f"trainer.limit_{split}_batches")
        if limit is None or not images or (isinstance(limit, float) and limit == 1):
            return images
        batch = self.config.data.batch_size if split == "train" else self.config.data.eval_batch_size
        all_batches = images // batch if split == "train" else -(-images // batch)  # training drops one that isn't full
        batches = limit if isinstance(limit, int) else int(limit * all_batches)
        return min(images, batches * batch)


def accuracy_interval(accuracy: float, images: int) -> str:
    """Wilson's 95% confidence interval of an accuracy that was measured on so many images: `94.1% to 96.7%`."""
    low, high = wilson_interval(np.array([accuracy]), np.array([images]))
    return f"{low[0]:.1%} to {high[0]:.1%}"


def read_run_summary(run: RunDirectory, config: DictConfig | None = None) -> RunSummary:
    """What the files of a run say; a run that has just ended gives its `config`, to save the time of reading it."""
    manifest = run.manifest()
    finished = manifest.get("status") == "finished"
    details = _read_json(run.path / "test_details.json") if finished else {}
    checks = _read_json(run.path / "preflight.json").get("checks", [])
    final = run.final_metrics() if finished else {}
    resumable = (run.checkpoints / "last.ckpt").exists()
    return RunSummary(config or run.config(), manifest, run.epoch_rows(), final, details, checks, resumable)


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
