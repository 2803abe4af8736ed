"""A run done again, and what came out of it then and now."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from vitlab.config.compose import apply_overrides
from vitlab.config.instantiate import check_trusted
from vitlab.distributed.broadcast import broadcast_from_rank0
from vitlab.errors import UserError
from vitlab.experiment import as_plain_data, train
from vitlab.files import folder_for
from vitlab.report.terminal import print_comparison
from vitlab.runs.directory import RunDirectory
from vitlab.runs.loggers import clear_logger_run_id
from vitlab.runs.manifest import differences
from vitlab.runs.rebase import check_paths, moved
from vitlab.runs.run_log import log_to

# What takes time takes another each time.
MEASURED = ("seconds", "images_per_second", "data_wait", "memory_gib", "mfu")


def reproduce(command: DictConfig, overrides: Sequence[Override], conf: Path) -> dict[str, float]:
    """Trains with a run's resolved config and seed in a new directory, and prints its metrics beside the run's.

    On the same machine, with the same versions and code, they are equal to the last bit; what differs of those is said.

    Returns:
        The new run's final metrics.

    Raises:
        UserError: there is no such run, or it has not finished.
        KeyboardInterrupt, TerminatedError: as `train`.
    """
    run = RunDirectory(Path(broadcast_from_rank0("reproduced", lambda: str(_finished(command).path))))
    if not run.metrics_file.exists():
        raise UserError(f"reproduce={command.reproduce} has no metrics.json to compare with: the run is not finished")
    config = run.config()
    if config.name == ".." or Path(str(config.name)).name != config.name:
        raise UserError(f"name={config.name} in {run.path / 'config.yaml'} is no name of a folder")
    base = Path(command.outputs) / config.name / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(
        broadcast_from_rank0("reproduce", lambda: str(folder_for(base, "manifest.json", "run.log").resolve()))
    )
    config = OmegaConf.create(moved(as_plain_data(config), str(config.run_dir), str(folder)))
    clear_logger_run_id(config.logger)
    apply_overrides(config, overrides, conf, command)
    check_trusted(as_plain_data(config), list(command.trusted_targets))
    check_paths({group: as_plain_data(config)[group] for group in ("callbacks", "logger", "trainer")}, folder)
    log_to(folder, conf)
    metrics = train(config, overrides=[], beside=run.manifest())
    if metrics:
        then = json.loads(run.metrics_file.read_text(encoding="utf-8"))
        compared = {name: (then.get(name), metrics.get(name)) for name in {**then, **metrics} if name not in MEASURED}
        print_comparison(run.path, compared, differences(run.manifest(), RunDirectory(folder).manifest()))
    return metrics


def _finished(command: DictConfig) -> RunDirectory:
    return RunDirectory.open(str(command.reproduce), command.outputs, key="reproduce")
