"""Resume interrupted and requeued runs; reproduce a run in a new directory."""

import copy
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.utilities import rank_zero_only

from vitlab.arguments.command import parse_overrides, read_command
from vitlab.arguments.entry_points import this_command
from vitlab.components import as_plain_data, time_limit
from vitlab.config.check import find_mistakes
from vitlab.config.instantiate import targets
from vitlab.config.resolve import resolve_processes
from vitlab.distributed.failure_report import clear_failures
from vitlab.distributed.process import broadcast_from_rank0, job, this_process
from vitlab.errors import UserError, first_line
from vitlab.experiment import Experiment, build, fit_and_test, prepare_process, record_final_status, resolve, train
from vitlab.files import CONF, folder_for, set_aside, write_text
from vitlab.models.execution import has_gpu
from vitlab.report.tensorboard import log_run_text
from vitlab.report.terminal import print_comparison, print_resumed
from vitlab.runs.checkpoint import CONFIG_KEY, read_checkpoint
from vitlab.runs.console import log_to
from vitlab.runs.directory import RunDirectory, checkpoint_named, moment, rebase_paths
from vitlab.runs.hparams import flatten
from vitlab.runs.loggers import clear_logger_run_ids
from vitlab.runs.manifest import describe_origin, differences
from vitlab.runs.overrides import apply_overrides
from vitlab.runs.trust import check_paths, check_trusted

log = logging.getLogger(__name__)

NEW_LENGTH = "from here on, the learning rate schedule is that of the new length"
NOT_EXACT = "the same run, but not to the last bit"
OTHER_RANKS = (
    "the same batches, divided among other processes: equal up to rounding, except that each process draws its own "
    "dropout, stochastic depth and patch dropout"
)
# Keys (and prefixes of keys) that may change when a run is resumed, and the effect to report; None: no effect.
RESUMABLE_KEYS: dict[str, str | None] = {
    **dict.fromkeys(("run_dir", "preflight", "callbacks.", "logger", "logger."), None),
    **dict.fromkeys(("checkpoint.last_every_n_epochs", "checkpoint.every_minutes"), None),
    **dict.fromkeys(("data.root", "data.cache_dir", "data.url", "data.md5"), None),  # the images are compared
    **dict.fromkeys(("trainer.max_epochs", "trainer.max_steps", "trainer.max_time"), NEW_LENGTH),
    **dict.fromkeys(("trainer.limit_test_batches", "trainer.log_every_n_steps", "trainer.enable_progress_bar"), None),
    **dict.fromkeys(("trainer.enable_model_summary", "trainer.profiler", "trainer.detect_anomaly"), None),
    **dict.fromkeys(("trainer.inference_mode", "trainer.strategy.timeout_seconds"), None),
    **dict.fromkeys(("trainer.devices", "trainer.num_nodes"), OTHER_RANKS),
    **dict.fromkeys(("trainer.accelerator", "trainer.strategy", "trainer.strategy.", "compile"), NOT_EXACT),
    **dict.fromkeys(("trainer.deterministic", "trainer.benchmark", "gradient_checkpointing"), NOT_EXACT),
    **dict.fromkeys(("matmul_precision", "data.eval_batch_size"), NOT_EXACT),
}
RESUMABLE_STATE = {"epoch", "global_step", "optimizer_states", "lr_schedulers", "loops", "callbacks"}
# Metrics that differ each time a run is repeated.
MEASURED = ("seconds", "images_per_second", "data_wait", "memory_gib", "mfu")


def resume(command: DictConfig, overrides: Sequence[Override]) -> tuple[Path, dict[str, float]]:
    """Resumes a run from one of its checkpoints: on the same machine and versions, bit for bit as if uninterrupted.

    `command` holds the values of `conf/resume.yaml`, `overrides` those of the run's config. Returns the run directory
    and the final metrics. Raises as `train`; also UserError if a key may not change, the images differ, or another
    process writes to the run.
    """
    started = time.perf_counter()
    run = _open_on_rank0(str(command.resume), command.outputs, key="resume", finished=False)
    with run.locked():
        # Resolve: the run's own config, with the changes that the user asks for and the run allows.
        saved = _rebased(run.config(), run.path)
        config = copy.deepcopy(saved)
        config.trainer.num_nodes = "auto"  # as many machines and processes as were started now
        if this_process().launched_together:
            config.trainer.devices = "auto"
        apply_overrides(config, overrides, command)
        resolve_processes(config)
        changed = check_changes(as_plain_data(saved), as_plain_data(config))
        _check_config(config, run.path, command)
        which = checkpoint_named(str(command.resume), command.outputs, str(command.checkpoint))
        file = run.checkpoints / f"{which}.ckpt" if which in ("last", "best") else Path(which)
        epoch, step = _position(run, file, config)
        log_to(run.path)
        prepare_process(config)

        # Build: as in a new run; the weights come from the checkpoint.
        experiment = build(resolve(config), step=step)
        _check_images(run, experiment)

        # Reopen the run directory; fit, test, report.
        _record_resume(run, experiment.config, changed, epoch, step)
        print_resumed(experiment.config, run.path, epoch, step, changed)
        with record_final_status(experiment):
            log_run_text(experiment.trainer, run)
            return run.path, fit_and_test(experiment, started, checkpoint=file)


def _open_on_rank0(path: str, outputs: str, *, key: str, finished: bool = True) -> RunDirectory:
    opened = broadcast_from_rank0(key, lambda: str(RunDirectory.open(path, outputs, key=key, finished=finished).path))
    return RunDirectory(Path(opened))


def _rebased(config: DictConfig, now: Path) -> DictConfig:
    """A run's config with its paths in the directory `now`."""
    try:
        return OmegaConf.create(rebase_paths(as_plain_data(config), str(config.run_dir), str(now.resolve())))
    except OmegaConfBaseException as error:
        raise UserError(f"the run's config.yaml: {first_line(error)}") from error


def _check_config(config: DictConfig, folder: Path, command: DictConfig) -> None:
    """Refuses a config with untrusted targets, with paths outside the run directory, or with mistakes."""
    plain = as_plain_data(config)
    check_trusted(plain, list(command.trusted_targets))
    check_paths({group: plain.get(group) for group in ("callbacks", "logger", "trainer")}, folder)
    if mistakes := find_mistakes(config, []):
        raise UserError("the run's config.yaml: " + "; ".join(f"{m.subject}{m.rest}" for m in mistakes))


def check_changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str | None]:
    """The keys that differ between two configs, with their effects; UserError if one may not change."""
    old, new = flatten(before), flatten(after)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    known = {key: k for key in changed for k in RESUMABLE_KEYS if key == k or (k.endswith(".") and key.startswith(k))}
    refused = [f"{key}={new.get(key)} (the run has {old.get(key)})" for key in changed if key not in known]
    if refused:
        raise UserError(
            f"Cannot resume with a changed config: {', '.join(refused)}; "
            "init_from=<run> starts a new run from its weights"
        )
    return {key: RESUMABLE_KEYS[k] for key, k in known.items()}


def _position(run: RunDirectory, file: Path, config: DictConfig) -> tuple[int, int]:
    """Epoch (from 1) and step at which a checkpoint can be resumed; UserError if it can't, or the run is at its end."""
    try:
        state = read_checkpoint(file, tensors=False)
    except UserError as error:
        raise UserError(f"{error}{_name_readable_checkpoint(run, file)}") from None
    if missing := RESUMABLE_STATE - set(state):
        raise UserError(f"{file} can't be resumed: it lacks {', '.join(sorted(missing))}")
    if any(state[CONFIG_KEY].get(group) != as_plain_data(config)[group] for group in ("model", "optimizer", "seed")):
        raise UserError(f"{file} is another run's: its model, optimizer or seed is not this run's")
    _check_not_at_end(run, config, state)
    return state["epoch"] + 1, state["global_step"]


def _name_readable_checkpoint(run: RunDirectory, damaged: Path) -> str:
    for other in sorted(run.checkpoints.glob("*.ckpt"), key=lambda f: f.stat().st_mtime, reverse=True):
        if other != damaged:
            with suppress(UserError):
                read_checkpoint(other)
                return f"; checkpoint={other.stem if other.stem in ('best', 'last') else other} can be"
    return ""


def _check_not_at_end(run: RunDirectory, config: DictConfig, state: dict[str, Any]) -> None:
    """Refuses a finished run unless its length was increased."""
    if run.manifest().get("status") != "finished":
        return
    epochs, steps = config.trainer.max_epochs or -1, config.trainer.max_steps
    time_is_up = False
    for clock in time_limit(config):
        clock.load_state_dict(state["callbacks"].get(clock.state_key, {}))
        time_is_up = clock.time_elapsed() >= clock.seconds
    if time_is_up or 0 < epochs <= state["epoch"] + 1 or 0 < steps <= state["global_step"]:
        limit = "max_time" if time_is_up else "max_steps" if steps > 0 else "max_epochs"
        raise UserError(
            f"{run.path} is finished, after {state['epoch'] + 1} epochs and {state['global_step']} steps: "
            f"give a larger trainer.{limit}=... to extend it"
        )


def _check_images(run: RunDirectory, experiment: Experiment) -> None:
    known = run.manifest().get("data", {})
    for split, found in experiment.data.fingerprints().items():
        if split in known and known[split]["sha256"] != found["sha256"]:
            raise UserError(
                f"the {split} images are not those that the run was trained with ({found['images']} images here, "
                f"{known[split]['images']} then): data.root must name the same data"
            )


@rank_zero_only
def _record_resume(
    run: RunDirectory, config: DictConfig, changed: dict[str, str | None], epoch: int, step: int
) -> None:
    """Records in the manifest where and with what the run is resumed; warns if that may change its results."""
    clear_failures(run.path)
    origin = describe_origin()
    different = differences(run.manifest(), origin)
    if has_gpu(config.trainer.accelerator) and not config.trainer.deterministic:
        different.append("a GPU adds numbers in any order unless trainer.deterministic=true")
    if different:
        log.warning(f"Results may differ from an uninterrupted run: {', '.join(different)}")
    run.reopen({"epoch": epoch, "step": step, "changed": sorted(changed), **origin})
    if changed:
        set_aside(run.path / "config.yaml", keep=True)
        write_text(run.path / "config.yaml", OmegaConf.to_yaml(config))


def reproduce(command: DictConfig, overrides: Sequence[Override]) -> tuple[Path, dict[str, float]]:
    """Trains with a finished run's config and seed in a new directory, and prints both runs' metrics: equal to the last
    bit on the same machine, with the same versions and code. Takes, returns and raises the same as `resume`."""
    run = _open_on_rank0(str(command.reproduce), command.outputs, key="reproduce")
    then = run.final_metrics()
    if not then:
        raise UserError(f"reproduce={command.reproduce} has no metrics.json to compare with: the run is not finished")
    config = run.config()
    name = PureWindowsPath(str(config.name))  # takes both slashes
    if name.anchor or ".." in name.parts:
        raise UserError(f"name={config.name} in {run.path / 'config.yaml'} can't be the name of a folder")
    base = Path(command.outputs) / config.name / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(
        broadcast_from_rank0(
            "folder", lambda: str(folder_for(base, "manifest.json", "run.log", key="outputs").resolve())
        )
    )
    config = _rebased(config, folder)
    config.logger = clear_logger_run_ids(config.logger or {})
    apply_overrides(config, overrides, command)
    _check_config(config, folder, command)
    log_to(folder)

    metrics = train(config, overrides=[], compare_with=run.manifest())
    if metrics:
        compared = {name: (then.get(name), metrics.get(name)) for name in {**then, **metrics} if name not in MEASURED}
        print_comparison(run.path, compared, differences(run.manifest(), RunDirectory(folder).manifest()))
    return folder, metrics


def resume_requeued(arguments: Sequence[str]) -> bool:
    """Resumes the run that this command began before SLURM or torchrun started it again.

    The arguments on the command line are trusted, and so are the targets that they name. Raises as `resume`. Returns
    False if the command began no run, or nothing of the run was saved: then start a new one.
    """
    folder, outputs, trusted, overrides = _read_training_command(arguments)
    places = [Path(outputs), *([folder] if folder else [])]
    begun = broadcast_from_rank0("begun", lambda: _find_begun_run(places))
    if not begun:
        return False
    run = RunDirectory(Path(begun))
    if not any(run.checkpoints.glob("*.ckpt")):
        if folder and run.path.resolve() == folder.resolve() and this_process().is_rank_zero:
            set_aside(run.path)  # the new run needs its name
        return False
    if run.manifest().get("status") == "finished":
        print(f"{run.path} is finished: nothing is left to do for this job")
        return True
    command, _ = read_command("resume", ["resume=begun"])
    command.resume = str(run.path)
    command.checkpoint = "last" if (run.checkpoints / "last.ckpt").exists() else "best"
    command.trusted_targets = trusted
    resume(command, overrides)
    return True


def _find_begun_run(places: Iterable[Path]) -> str:
    """The newest run in or below these folders that an earlier start of this job began; "" if there is none."""
    found = []
    mine = job(), this_command(), str(Path.cwd())
    for file in {file for place in places for file in place.rglob("manifest.json")}:
        with suppress(UserError):  # an unreadable manifest belongs to another run
            manifest = RunDirectory(file.parent).manifest()
            if (manifest.get("job"), manifest.get("command"), manifest.get("folder")) == mine:
                found.append((moment(manifest.get("started")), str(file.parent)))
    return max(found)[1] if found else ""


def _read_training_command(arguments: Sequence[str]) -> tuple[Path | None, str, list[str], list[Override]]:
    """The run directory that a command names, the folder of all runs, its targets, and where its data comes from."""
    if any(argument.startswith("reproduce=") for argument in arguments):
        command, _ = read_command("reproduce", arguments)
        return None, str(command.outputs), list(command.trusted_targets), []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", list(arguments), return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # hydra.run.dir may refer to the choices
    folder = Path(config.hydra.run.dir)
    HydraConfig.instance().cfg = None  # the resumed run is no Hydra job
    plain = OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    places = [f"data.{key}={config.data[key]!r}" for key in ("cache_dir", "url") if config.data.get(key) is not None]
    return folder, "outputs", list(targets(plain)), parse_overrides(places)
