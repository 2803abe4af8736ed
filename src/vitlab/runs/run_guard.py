"""Check the config and claim the run directory before Hydra writes anything."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vitlab.config.compose import describe_mistakes, refuse
from vitlab.config.instantiate import walk
from vitlab.distributed.process import broadcast_from_rank0, this_process
from vitlab.errors import UserError
from vitlab.files import expand_home, numbered
from vitlab.runs.console import log_settings
from vitlab.runs.directory import HOLDS_A_RUN
from vitlab.system import name_fault


class RunGuard(Callback):
    """Hydra's callback before a run: the last moment at which `.hydra/` and `run.log` are still an old run's."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)  # run.dir may ask it for the choices; Hydra sets it later
        me = this_process()
        with exit_on_error():
            _expand_home(config)
            if me.is_rank_zero:
                refuse(describe_mistakes(config))
            folder = broadcast_from_rank0("folder", lambda: _claim_folder(config))
            with read_write(config.hydra), open_dict(config.hydra):
                config.hydra.run.dir = folder
                if not me.is_rank_zero:  # rank 0 writes what belongs to the run; the others have logs of their own
                    config.hydra.output_subdir = None
                    config.hydra.job_logging = log_settings(config.hydra.job_logging, Path(folder))


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the process at any exception: Hydra turns a callback's exceptions into warnings and continues."""
    try:
        yield
    except UserError as error:
        refuse([str(error)])
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
