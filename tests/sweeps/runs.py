"""Write run directories as runs do, without training."""

import csv
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vitlab.runs.directory import RunDirectory

MANIFEST = {
    "git": {"revision": "0" * 40, "dirty": False},
    "versions": {"torch": "2.11.0"},
    "hardware": {"cpu": "a processor"},
    "data": {split: {"images": 100, "sha256": split} for split in ("train", "val", "test")},
}


@cache
def composed(groups: Sequence[str]) -> tuple[DictConfig, DictConfig, str]:
    """A training config, the same with Hydra's own node, and that node as YAML."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", list(groups), return_hydra_config=True)
    OmegaConf.set_struct(config, False)
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return job, config, OmegaConf.to_yaml(OmegaConf.masked_copy(config, ["hydra"]))


def write_run(
    path: Path,
    *overrides: str,
    val: float | None = 0.5,
    test: float | None = 0.4,
    status: str = "finished",
    epochs: int = 3,
    manifest: Mapping[str, Any] | None = None,
    **metrics: float,
) -> Path:
    """A run directory with these accuracies.

    Args:
        overrides: As typed: `optimizer.lr=0.1`, `model=vit_tiny`.
        val, test: Final accuracies; None: not measured.
        status: Of the manifest; only a finished run has final metrics.
        epochs: Rows of metrics.csv.
        manifest: Over what every run's says.
        metrics: Others, final.
    """
    groups = tuple(o for o in overrides if (ROOT / "conf" / o.partition("=")[0]).is_dir())
    template, everything, hydra_yaml = composed(groups)
    job = template.copy()
    job.merge_with(OmegaConf.from_dotlist([o for o in overrides if o not in groups]))
    OmegaConf.set_readonly(everything.hydra, False)  # Hydra makes it read-only
    everything.hydra.runtime.output_dir = str(path)
    HydraConfig.instance().set_config(everything)
    hydra = path / ".hydra"
    hydra.mkdir(parents=True)
    OmegaConf.save(job, hydra / "config.yaml")
    (hydra / "hydra.yaml").write_text(hydra_yaml)
    OmegaConf.save(OmegaConf.create(list(overrides)), hydra / "overrides.yaml")
    resolved: Any = OmegaConf.to_container(job, resolve=True)
    run = RunDirectory(path)
    run.create(resolved, {**MANIFEST, **(manifest or {})})
    rows = [{"epoch": e, "step": 10 * e, "seconds": 10.0 * e, "train/loss": 2 / e} for e in range(1, epochs + 1)]
    final = {"epoch": epochs, "step": 10 * epochs, "seconds": 60.0, "train/loss": 0.5, **metrics}
    if val is not None:
        rows = [{**row, "val/loss": 1.5 - val, "val/acc": val * row["epoch"] / epochs} for row in rows]
        final |= {"val/loss": 1.5 - val, "val/acc": val}
    if test is not None:
        final |= {"test/acc": test}
    with run.epochs_file.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("epoch", "step", "seconds", "train/loss", "val/loss", "val/acc", "mfu"))
        writer.writeheader()
        writer.writerows(rows)
    if status == "finished":
        run.metrics_file.write_text(json.dumps({**final, **metrics}))
    if status != "running":
        run.end(status)
    return path


def write_grid(sweep: Path) -> None:
    """12 rows of 3 seeds: two networks, three learning rates, two weight decays; higher rates are better."""
    number = 0
    for model in ("vit_scratch", "vit_tiny"):
        for lr in (1e-4, 3e-4, 1e-3):
            for decay in (0.0, 0.05):
                for seed in range(3):
                    noise = ((number * 7919) % 13 - 6) / 1000
                    val = 0.6 + 0.05 * (lr * 1000) ** 0.5 + (0.02 if model == "vit_tiny" else 0) + 0.1 * decay + noise
                    typed = (f"model={model}", f"optimizer.lr={lr}", f"optimizer.weight_decay={decay}", f"seed={seed}")
                    write_run(sweep / str(number), *typed, val=val, test=val - 0.01, epochs=8)
                    number += 1


def write_record(sweep: Path, *jobs: Mapping[str, Any]) -> None:
    """`sweep.json` as a sweep writes it; of each job what is told of it."""
    rows = [{"overrides": [], "folder": str(job["number"]), "reason": "", **job} for job in jobs]
    (sweep / "sweep.json").write_text(json.dumps({"arguments": [], "cwd": "", "jobs": rows}))
