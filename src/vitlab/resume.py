"""A run that goes on where it was interrupted, in its own directory."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.utilities import rank_zero_only

from vitlab.config.check import find_mistakes
from vitlab.config.compose import apply_overrides
from vitlab.config.instantiate import build_network, check_trusted
from vitlab.config.resolve import resolve_processes
from vitlab.data import ImageDataModule
from vitlab.distributed.broadcast import broadcast_from_rank0
from vitlab.distributed.failure_report import clear_failures
from vitlab.distributed.process import this_process
from vitlab.errors import UserError
from vitlab.experiment import (
    as_plain_data,
    build_classifier,
    build_trainer,
    choose_execution,
    configure_process,
    fingerprints,
    fit_and_test,
    load_data,
    record_final_status,
    run_lock,
    time_limit,
)
from vitlab.files import set_aside, write_text
from vitlab.report.tensorboard import log_run_text
from vitlab.report.terminal import print_resumed
from vitlab.runs.changes import changes
from vitlab.runs.checkpoint import CONFIG_KEY, read_checkpoint
from vitlab.runs.directory import RunDirectory
from vitlab.runs.manifest import describe_origin, differences
from vitlab.runs.rebase import check_paths, moved
from vitlab.runs.run_log import log_to

log = logging.getLogger(__name__)


def resume(command: DictConfig, overrides: Sequence[Override], conf: Path) -> dict[str, float]:
    """Goes on with a run from a checkpoint of its own.

    On the same machine, with the same versions, it becomes to the last bit what it would have been uninterrupted.

    Args:
        command: The values of `conf/resume.yaml`.
        overrides: Of the run's config.
        conf: The folder of YAML files.

    Returns:
        The final metrics, as in `metrics.json`.

    Raises:
        UserError: there is nothing to go on with, a key may not change, the images are others, or another process is
            at it.
        KeyboardInterrupt, TerminatedError: as `train`.
    """
    started = time.perf_counter()
    run = RunDirectory(Path(broadcast_from_rank0("resume", lambda: str(_begun(command).path))))
    with run_lock(run):
        return _go_on(run, command, overrides, conf, started)


def _begun(command: DictConfig) -> RunDirectory:
    run = RunDirectory.open(str(command.resume), command.outputs, key="resume", finished=False)
    clear_failures(run.path)
    return run


def _go_on(
    run: RunDirectory, command: DictConfig, overrides: Sequence[Override], conf: Path, started: float
) -> dict[str, float]:
    config = relocated(run.config(), run.path)
    before = as_plain_data(config)
    config.trainer.num_nodes = "auto"  # as many as it is gone on with
    if this_process().has_peers:
        config.trainer.devices = "auto"
    apply_overrides(config, overrides, conf, command)
    resolve_processes(config)
    changed = changes(before, as_plain_data(config))
    check_trusted(as_plain_data(config), list(command.trusted_targets))
    check_paths({group: as_plain_data(config).get(group) for group in ("callbacks", "logger", "trainer")}, run.path)
    wrong = find_mistakes(config, [])
    if wrong:
        raise UserError(f"{run.path / 'config.yaml'}: " + "; ".join(f"{m.subject}{m.rest}" for m in wrong))
    file = run.checkpoints / f"{command.checkpoint}.ckpt" if command.checkpoint in ("last", "best") else None
    file = file or Path(command.checkpoint)
    state = readable_checkpoint(run, file, before)
    refuse_if_finished(config, run, state)
    place = state["epoch"], state["global_step"]
    del state  # as large as the model and its optimizer

    log_to(run.path, conf)
    configure_process(config)
    data = load_data(config)
    refuse_other_images(run, data)
    network = build_network(config.model)
    choose_execution(config, network)
    classifier = build_classifier(config, network)
    resolved = as_plain_data(config)
    trainer = build_trainer(config, resolved, run, place[1])
    note_resumed(run, resolved, changed, place)
    print_resumed(config, run.path, *place, changed)
    with record_final_status(run, config):
        log_run_text(trainer, resolved, run)
        return fit_and_test(config, trainer, classifier, data, run, started, file)


def relocated(config: DictConfig, path: Path) -> DictConfig:
    """A run's config with its paths in the directory where the run lies now."""
    try:
        return OmegaConf.create(moved(as_plain_data(config), str(config.run_dir), str(path.resolve())))
    except OmegaConfBaseException as error:
        raise UserError(f"{path / 'config.yaml'}: {str(error).splitlines()[0]}") from error


def readable_checkpoint(run: RunDirectory, file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's content.

    Raises:
        UserError: there is none, or it is damaged, with another of the run's that is not; or it is another run's.
    """
    try:
        state = read_checkpoint(file, tensors=False)
    except UserError as error:
        raise UserError("; ".join([str(error), *_whole_ones(run, file)[:1]])) from None
    lacking = {"epoch", "global_step", "optimizer_states", "lr_schedulers", "loops", "callbacks"} - set(state)
    if lacking:
        raise UserError(f"{file} is no checkpoint that a run can go on from: it lacks {', '.join(sorted(lacking))}")
    if any(state[CONFIG_KEY].get(group) != config[group] for group in ("model", "optimizer", "seed")):
        raise UserError(f"{file} is another run's: its model, optimizer or seed is not this run's")
    return state


def _whole_ones(run: RunDirectory, damaged: Path) -> list[str]:
    found = []
    for other in sorted(run.checkpoints.glob("*.ckpt"), key=lambda f: f.stat().st_mtime, reverse=True):
        if other != damaged:
            with suppress(UserError):
                read_checkpoint(other)
                found.append(f"checkpoint={other.stem if other.stem in ('best', 'last') else other} can be")
    return found


def refuse_if_finished(config: DictConfig, run: RunDirectory, state: dict[str, Any]) -> None:
    """Refuses a run that is finished and shall not become longer."""
    if run.manifest().get("status") != "finished":
        return
    epochs, steps = config.trainer.max_epochs or -1, config.trainer.max_steps
    clock = time_limit(config)
    if clock is not None:
        clock.load_state_dict(state["callbacks"].get(clock.state_key, {}))
    over = clock is not None and clock.time_elapsed() >= clock.seconds
    if over or 0 < epochs <= state["epoch"] + 1 or 0 < steps <= state["global_step"]:
        limit = "max_time" if over else "max_steps" if steps > 0 else "max_epochs"
        raise UserError(
            f"{run.path} is finished, after {state['epoch'] + 1} epochs and {state['global_step']} steps: "
            f"a larger trainer.{limit}=... goes on"
        )


def refuse_other_images(run: RunDirectory, data: ImageDataModule) -> None:
    known = run.manifest().get("data", {})
    for split, found in fingerprints(data).items():
        if split in known and known[split]["sha256"] != found["sha256"]:
            raise UserError(
                f"the {split} images are not those that the run was trained with ({found['images']} images here, "
                f"{known[split]['images']} then): data.root must name the same data"
            )


@rank_zero_only
def note_resumed(
    run: RunDirectory, resolved: dict[str, Any], changed: dict[str, str | None], place: tuple[int, int]
) -> None:
    """Notes in the manifest where and with what the run goes on; says what makes it another than it would have been."""
    origin = describe_origin()
    other = differences(run.manifest(), origin)
    if other:
        log.warning(f"not to the last bit the run it would have been: {', '.join(other)}")
    run.reopen({"epoch": place[0], "step": place[1], "changed": sorted(changed), **origin})
    if changed:
        set_aside(run.path / "config.yaml", keep=True)
        write_text(run.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))
