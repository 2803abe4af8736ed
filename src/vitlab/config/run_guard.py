"""Refuses a used run directory before Hydra writes into it."""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class RunGuard(Callback):
    """Hydra's callback at the start of a run: the last moment at which `.hydra/` and `run.log` are still the old run's.

    Other processes of the same run find the directory begun, as they should: Lightning starts them with
    `hydra.output_subdir=null`, torchrun tells them their rank.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)  # run.dir may ask it for the choices; Hydra sets it later on
        folder = Path(config.hydra.run.dir)
        first = config.hydra.output_subdir is not None and os.environ.get("RANK", "0") == "0"
        if first and (folder / "manifest.json").exists():
            print(
                f"error: {folder} holds a run already: choose another directory with hydra.run.dir=...", file=sys.stderr
            )
            sys.exit(2)  # Hydra turns a callback's exceptions into warnings, but for this one
