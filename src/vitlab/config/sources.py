"""Which file of `conf/` a value stands in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf


def source_file_of(path: str, conf: Path, config_name: str, overrides: Sequence[str]) -> str | None:
    """The file below `conf` that gives a path its value; None where the user typed it, or no file does.

    Args:
        path: Of the config: `optimizer.lr`.
        conf: The folder of YAML files.
        config_name: Of the file at the top.
        overrides: What the user typed.
    """
    typed = [override.lstrip("+~").split("=")[0].split("@")[0] for override in overrides]
    values = [key for key in typed if not (conf / key).is_dir()]
    if any(f"{path}.".startswith(f"{key}.") or key.startswith(f"{path}.") for key in values):
        return None
    loader = GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN).defaults
    for default in reversed(list(defaults)):  # the last one that says it wins
        file = conf / f"{default.config_path}.yaml"
        if file.is_file() and _says(file, default, path):
            return str(file.relative_to(conf.parent))
    return None


def _says(file: Path, default: ResultDefault, path: str) -> bool:
    node: Any = OmegaConf.to_container(OmegaConf.load(file))
    package = default.package or ""
    if package and package != "_global_":
        if not path.startswith(f"{package}."):
            return False
        path = path.removeprefix(f"{package}.")
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True
