"""A trained model back from a run's config and checkpoint."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from vitlab.config.instantiate import build_network, check_trusted
from vitlab.runs.checkpoint import load_network


def rebuild_network(
    config: DictConfig, checkpoint: dict[str, Any], path: Path, trusted: list[str], which: str = "raw"
) -> nn.Module:
    """The network with the weights of a checkpoint, in eval mode, on the CPU.

    Args:
        config: The run's.
        checkpoint: As `read_checkpoint` gives it.
        path: The checkpoint's, for messages.
        trusted: Prefixes of targets that the config may name beside vitlab's own.
        which: Of the checkpoint's weights, as `choose_weights` says.

    Raises:
        UserError: the config names a target that is not trusted, or the weights are another network's.
    """
    check_trusted(OmegaConf.to_container(config, resolve=True), trusted)
    network: nn.Module = build_network(config.model)
    load_network(network, checkpoint, path, which)
    if config.compile:
        network.compile()
    return network.eval()
