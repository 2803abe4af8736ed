"""A command that SLURM or torchrun gives again goes on with the run that it began."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from vitlab.config.compose import CONF, read_command
from vitlab.config.instantiate import targets
from vitlab.distributed.broadcast import broadcast_from_rank0
from vitlab.distributed.process import this_process
from vitlab.distributed.slurm import find_begun_run
from vitlab.files import set_aside
from vitlab.runs.directory import RunDirectory


def resume_requeued(arguments: Sequence[str]) -> bool:
    """Goes on with the run that the same command began before its job gave it again.

    Args:
        arguments: As typed. They are trusted, and so are the targets that they come to.

    Returns:
        False where it began none, or was ended before anything of it was saved: a new run is due then.

    Raises:
        As `vitlab.resume.resume`.
    """
    folder, outputs, trusted, overrides = _meant(arguments)
    places = [Path(outputs), *([folder] if folder else [])]
    begun = broadcast_from_rank0("begun", lambda: str(run.path) if (run := find_begun_run(places)) else "")
    if not begun:
        return False
    run = RunDirectory(Path(begun))
    if not any(run.checkpoints.glob("*.ckpt")):
        if folder and run.path.resolve() == folder.resolve() and this_process().is_rank_zero:
            set_aside(run.path)  # the new run wants that very name
        return False
    if run.manifest().get("status") == "finished":
        print(f"{run.path} is finished: nothing is left to do for this job")
        return True
    command, _ = read_command(CONF, "resume", ["resume=begun"])
    command.resume = str(run.path)
    command.checkpoint = "last" if (run.checkpoints / "last.ckpt").exists() else "best"
    command.trusted_targets = trusted
    from vitlab.resume import resume

    resume(command, overrides, CONF)
    return True


def _meant(arguments: Sequence[str]) -> tuple[Path | None, str, list[str], list[Override]]:
    """Where the command's run may lie (its own folder, and the one of all runs), the targets that it names, and what
    holds of its data where it is typed alone."""
    if any(argument.startswith("reproduce=") for argument in arguments):
        command, _ = read_command(CONF, "reproduce", arguments)
        return None, str(command.outputs), list(command.trusted_targets), []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", list(arguments), return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # hydra.run.dir may ask it for the choices
    folder = Path(config.hydra.run.dir)
    HydraConfig.instance().cfg = None  # what goes on is no job of Hydra's
    plain = OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    places = [f"data.{key}={config.data[key]!r}" for key in ("cache_dir", "url") if config.data.get(key) is not None]
    return folder, "outputs", list(targets(plain)), OverridesParser.create().parse_overrides(places)
