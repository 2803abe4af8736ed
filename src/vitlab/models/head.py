"""Which part of a network is its head."""

from typing import Any

from torch import nn


def head_modules(network: nn.Module) -> list[nn.Module]:
    """The layers that give the logits: what `get_classifier()` returns, timm's convention; empty without that method.

    A network with several heads (DeiT's class and distillation tokens) returns them as a tuple.
    """
    get_classifier: Any = getattr(network, "get_classifier", None)
    if get_classifier is None:
        return []
    found = get_classifier()
    modules = found if isinstance(found, tuple | list) else [found]
    return [module for module in modules if any(True for _ in module.parameters())]


def head_names(network: nn.Module) -> list[str]:
    """Names of the head's parameters, as in `network.named_parameters()`."""
    own = {id(parameter) for module in head_modules(network) for parameter in module.parameters()}
    return [name for name, parameter in network.named_parameters() if id(parameter) in own]
