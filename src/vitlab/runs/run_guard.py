"""Check the config and claim the run directory before Hydra writes anything."""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vitlab.arguments.literals import quote
from vitlab.config.compose import NOT_COMPOSED, describe_mistakes, explain, job_mistakes, refuse
from vitlab.config.instantiate import walk
from vitlab.distributed.process import broadcast_from_rank0, this_process
from vitlab.errors import UserError
from vitlab.files import CONF, expand_home, make_folder, numbered, write_text
from vitlab.runs.console import log_settings
from vitlab.runs.directory import HOLDS_A_RUN
from vitlab.system import name_fault


class RunGuard(Callback):
    """Hydra's callback before a run: the last moment at which `.hydra/` and `run.log` are still an old run's."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)  # run.dir may ask it for the choices; Hydra sets it later
        with exit_on_error():
            claim_run(config)


def claim_run(config: DictConfig) -> None:
    """Check a config with Hydra's own node, create its run directory, and name that in `hydra.run.dir`.

    Raises:
        UserError: the config has mistakes, one per line, or the directory can't be used.
    """
    me = this_process()
    _expand_home(config)
    if me.is_rank_zero and (mistakes := describe_mistakes(config)):
        raise UserError("\n".join(mistakes))
    folder = broadcast_from_rank0("folder", lambda: _claim_folder(config))
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.run.dir = folder
        if not me.is_rank_zero:  # rank 0 writes what belongs to the run; the others have logs of their own
            config.hydra.output_subdir = None
            config.hydra.job_logging = log_settings(config.hydra.job_logging, Path(folder))


def begin_hydra_run(arguments: Sequence[str], config_dir: Path | None = None) -> tuple[Path, DictConfig, DictConfig]:
    """Do what Hydra and RunGuard do at the start of a run, for a program of the user's own: compose the config, check
    it, create the run directory with `.hydra/` in it. `config_dir` is a folder with further choices.

    Returns the directory, the config, and Hydra's node; HydraConfig is set. UserError: every mistake, one per line.
    """
    given = [*arguments, *([f"hydra.searchpath=[{quote(f'file://{config_dir.absolute()}')}]"] if config_dir else [])]
    with initialize_config_dir(str(CONF), job_name="train", version_base="1.3"):
        try:
            whole = compose("train", given, return_hydra_config=True)
        except NOT_COMPOSED as error:
            raise UserError("\n".join(job_mistakes(given) or [explain(error)])) from error
        HydraConfig.instance().set_config(whole)
        claim_run(whole)
    folder = Path(whole.hydra.run.dir).absolute()
    with read_write(whole.hydra.runtime), open_dict(whole.hydra.runtime):
        whole.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(whole)
    config = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    if whole.hydra.output_subdir is not None:
        nodes = config, OmegaConf.masked_copy(whole, "hydra"), whole.hydra.overrides.task
        make_folder(folder / whole.hydra.output_subdir, key="hydra.run.dir")
        for name, node in zip(("config", "hydra", "overrides"), nodes, strict=True):
            write_text(folder / whole.hydra.output_subdir / f"{name}.yaml", OmegaConf.to_yaml(node))
    return folder, config, whole.hydra


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the process at any exception: Hydra turns a callback's exceptions into warnings and continues."""
    try:
        yield
    except UserError as error:
        refuse(str(error).splitlines())
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _expand_home(config: DictConfig) -> None:
    """Replace a leading `~/` by the home folder, in the values of all files."""
    with read_write(config), read_write(config.hydra):
        for path, value in walk(OmegaConf.to_container(config)):
            if isinstance(value, str) and value.startswith(("~/", f"~{os.sep}")):
                OmegaConf.update(config, path, expand_home(value))


def _claim_folder(config: DictConfig) -> str:
    """Create the run directory, numbered if another run has the name; one from the command line is only checked."""
    folder = Path(config.hydra.run.dir)
    if any("\ud800" <= character <= "\udfff" for character in str(folder)):
        raise UserError(
            f"hydra.run.dir={str(folder)!r} is not UTF-8, and TensorBoard can't write to it: choose another name"
        )
    if fault := name_fault(folder):
        raise UserError(f"can't write the run to {folder} ({fault}): choose another name=... or hydra.run.dir=...")
    if any(override.lstrip("+").startswith("hydra.run.dir=") for override in config.hydra.overrides.hydra):
        if os.path.exists(folder / "manifest.json"):  # noqa: PTH110  # False if the name is too long
            raise UserError(HOLDS_A_RUN.format(folder))
        return str(folder)
    for claimed in map(folder.with_name, numbered(folder.name)):
        try:
            claimed.mkdir(parents=True)  # of two runs that start in the same second one succeeds
            break
        except FileExistsError:
            continue
        except OSError:  # the run itself reports it
            break
    return str(claimed)
