"""The features of images: what a model's head reads."""

from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.models.timm_models import head_modules


class FeatureRecorder:
    """Keep what the head reads in each forward pass of a model, until `close`.

    The head is what `get_classifier()` returns (timm's convention), in a model without that method the last linear
    layer, if its output is the logits. A compiled model has to run eagerly meanwhile.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        declared = [part for head in head_modules(network) for part in _parts(head)]
        self.is_declared = bool(declared)
        heads = declared or [module for module in network.modules() if isinstance(module, nn.Linear)]
        self._hooks = [head.register_forward_hook(self._keep) for head in heads]
        self._seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # input and output of the layers, as they were called

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not self.is_declared:
            self._seen.clear()  # only the last layer can be the head
        self._seen[module] = inputs[0], output

    def take(self, logits: Tensor) -> Tensor:
        """Features `[B, D]`, float32, of the forward pass that gave these logits, `[B, classes]`.

        Two heads of the same width (distilled DeiT) have the mean of their inputs, others all of them, as in timm's
        `forward_head(pre_logits=True)`. UserError if the model has no layer that is its head.
        """
        calls, self._seen = list(self._seen.values()), {}
        if not self.is_declared:
            calls = [call for call in calls if torch.equal(call[1].float(), logits.float())]
        features = [read.flatten(1).float() for read, _ in calls if read.shape[:2].numel() == read.numel()]
        if not features or {len(part) for part in features} != {len(logits)}:
            raise UserError(
                f"{type(self.network).__name__} does not say what its features are: give it a method get_classifier() "
                "that returns the last layer, which reads them"
            )
        same_width = len({part.shape for part in features}) == 1
        return torch.stack(features).mean(dim=0) if same_width else torch.cat(features, dim=1)


def head_features(network: nn.Module, inputs: Tensor) -> Tensor:
    """Compute the features that a model's head reads, pooled and normalised: float32 `[B, D]`, on the model's device.

    Args:
        inputs: Images as the model takes them, float `[B, 3, H, W]`.

    UserError if the model has no layer that is its head (see `FeatureRecorder`). Without gradients.
    """
    return features_and_logits(network, inputs)[0]


def features_and_logits(network: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """As `head_features`, with the logits of the same forward pass, float32 `[B, classes]`."""
    # A compiled graph does not call hooks that are younger than itself.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), closing(FeatureRecorder(network)) as recorder:
        logits = network(inputs).float()
        return recorder.take(logits), logits


def _parts(head: nn.Module) -> list[nn.Module]:
    """The layers of a head that is a list (CrossViT), which is never called itself."""
    return list(head) if isinstance(head, nn.ModuleList) else [head]
