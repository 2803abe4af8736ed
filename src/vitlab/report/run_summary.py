"""What a run directory knows of its run, read for telling it."""

import json
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from vitlab.config.ranges import mode_of
from vitlab.runs.directory import RunDirectory
from vitlab.runs.hparams import Setting, data_set, hparams_of

Row = dict[str, float]


@dataclass(frozen=True)
class RunSummary:
    """A run's files as plain data.

    Attributes:
        config, manifest: As in the files.
        epochs: Rows of `metrics.csv`, without empty cells.
        final: Of `metrics.json`; empty where the run did not get to its end.
        details: Of `test_details.json`; empty without it.
    """

    config: Any
    manifest: dict[str, Any]
    epochs: list[Row]
    final: dict[str, Any]
    details: dict[str, Any]

    @property
    def best(self) -> Row | None:
        """The epoch that was kept: of the best validation so far, else the last."""
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

    def passed(self, row: Row) -> float:
        """Epochs of training at a row's end: of the last one a part, where a time or a number of steps ended it."""
        if row is not self.epochs[-1]:
            return row["epoch"]
        before = self.epochs[-2]["step"] if len(self.epochs) > 1 else 0.0
        took = row["step"] - before + row.get("skipped_steps", 0)
        batches = self.used("train") // int(self.config.data.batch_size)
        whole = max(1, -(-batches // int(self.config.trainer.accumulate_grad_batches)))
        return round(row["epoch"] - 1 + min(1.0, took / whole), 2)

    @property
    def length(self) -> str:
        """Of the training, in words."""
        return "1 epoch" if (count := self.passed(self.epochs[-1])) == 1 else f"{count:g} epochs"

    @property
    def by_clock(self) -> bool:
        """Whether a time limits the run."""
        return OmegaConf.select(self.config, "trainer.max_time") is not None

    @property
    def unseen_patches(self) -> float:
        """Share of the patches that the network lacks while it trains."""
        return float(OmegaConf.select(self.config, "model.patch_dropout") or 0.0)

    @property
    def as_trained(self) -> str:
        """How training images come to the network, beside those of an evaluation."""
        nodes = (OmegaConf.select(self.config, "augment") or {}).items()
        acting = {name for name, node in nodes if node is not None and node.get("p") != 0}
        said = {
            "augmented": bool(acting - {"mixing"}),
            "mixed": "mixing" in acting,
            f"{self.unseen_patches:.0%} of their patches left out": self.unseen_patches > 0,
        }
        return ", ".join(words for words, true in said.items() if true) or "as they are"

    @property
    def suffix(self) -> str:
        """Of the metrics of the weights that epochs were selected by."""
        return "_ema" if self.config.checkpoint.monitor.endswith("_ema") else ""

    @property
    def draws(self) -> bool:
        """Whether the run is to have figures."""
        return OmegaConf.select(self.config, "callbacks.figures.level") in ("light", "full")

    @property
    def classes(self) -> list[str]:
        return list(self.config.data.classes)

    @property
    def hparams_of(self) -> dict[str, Setting]:
        return hparams_of(OmegaConf.to_container(self.config))  # type: ignore[arg-type]

    @property
    def data_set(self) -> str:
        return data_set(self.config)

    def images(self, split: str) -> int:
        """How many the split has."""
        return int(self.manifest.get("data", {}).get(split, {}).get("images", 0))

    def used(self, split: str) -> int:
        """How many of them the run looks at, where `trainer.limit_<split>_batches` leaves some out."""
        there = self.images(split)
        limit = OmegaConf.select(self.config, f"trainer.limit_{split}_batches")
        if limit is None or not there:
            return there
        batch = self.config.data.batch_size if split == "train" else self.config.data.eval_batch_size
        batches = limit if isinstance(limit, int) else int(limit * -(-there // batch))
        return min(there, batches * batch)


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
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found
