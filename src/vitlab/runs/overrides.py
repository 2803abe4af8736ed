"""Change a run's config by the overrides of a command."""

from collections.abc import Sequence

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigTypeError

from vitlab.arguments.hints import hint
from vitlab.config.check import find_mistakes
from vitlab.config.compose import compose_training
from vitlab.config.instantiate import shipped_nodes
from vitlab.errors import UserError
from vitlab.files import CONF

# What a model was trained with does not change with the images that it is shown.
FACTS = ("image_size", "stored_size", "interpolation", "num_classes", "classes", "mean", "std")
MACHINE = ("accelerator", "devices", "num_nodes", "strategy")  # what a choice of trainer replaces


def apply_overrides(config: DictConfig, overrides: Sequence[Override], command: DictConfig) -> None:
    """Change a run's resolved config in place: values (`data.root=x`), and whole groups (`data=image_folder`).

    The run's own `data.cache_dir` and, of vitlab's data sets, `data.url` are dropped: somebody else may have written
    the config, and would choose what is written on this machine, and where. `overrides` and `command` are those of
    `read_command`.

    Raises:
        UserError: a key is unknown, or a value is out of its range.
        omegaconf.errors.OmegaConfBaseException, hydra.errors.MissingConfigException: a deeper key or option is unknown.
    """
    data = config.get("data")
    if isinstance(data, DictConfig) and "cache_dir" in data:
        data.cache_dir = None
    if isinstance(data, DictConfig) and "url" in data:
        ours = (node["url"] for _, node in shipped_nodes() if node["_target_"] == data["_target_"] and "url" in node)
        data.url = next(ours, data.url)
    OmegaConf.set_struct(config, True)
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if isinstance(value, str | list) and (CONF / key).is_dir():
            _replace_group(config, key, override.get_value_element_as_str())
        elif key.split(".")[0] not in config:
            raise UserError(f"unknown key '{key}'{hint(key, {*config.keys(), *command.keys()})}")
        else:
            try:
                OmegaConf.update(config, key, value, merge=True)
            except ConfigTypeError as error:
                takes = "keys and values" if isinstance(OmegaConf.select(config, key), DictConfig) else "a list"
                raise UserError(f"{override.input_line}: {key} takes {takes}") from error
    changed = tuple(override.key_or_group for override in overrides)
    found = find_mistakes(config, [], imports=False)  # the config may come from a stranger
    wrong = [str(mistake) for mistake in found if mistake.path.startswith(changed)]
    if wrong:
        raise UserError("; ".join(wrong))


def _replace_group(config: DictConfig, group: str, option: str) -> None:
    before = config[group]
    with open_dict(config):
        config[group] = compose_training([f"{group}={option}"])[group]
        if group == "trainer":  # another machine, not another training
            config.trainer.update({key: value for key, value in before.items() if key not in MACHINE})
    for fact in (*FACTS, "eval_batch_size") if group == "data" else ():
        config.data[fact] = before[fact]
