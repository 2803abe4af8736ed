"""The features of images: what a model's head reads."""

from contextlib import closing, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.compat import is_compiled
from vitlab.errors import UserError
from vitlab.models.timm_models import head_modules


class FeatureRecorder:
    """Keep what the head reads in the forward passes of a model, until `close`.

    The head is what `get_classifier()` returns (timm's convention). If a model has no such method, or that head pools
    first, it is the last linear layer, provided that its output is the logits. A compiled model has to run eagerly
    meanwhile.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.heads = [part for head in head_modules(network) for part in _parts(head)]
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        self._hooks = [layer.register_forward_hook(self._keep) for layer in {*self.heads, *linear}]
        self._hooks.append(network.register_forward_hook(self._end_pass))
        self._read: dict[nn.Module, Tensor] = {}  # inputs of the heads, in the present pass
        self._last: tuple[Tensor, Tensor] | None = None  # input and output of the last linear layer
        self._first_pass: tuple[list[Tensor], tuple[Tensor, Tensor] | None, Tensor] | None = None

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if module in self.heads:
            self._read[module] = inputs[0]
        if isinstance(module, nn.Linear):
            self._last = inputs[0], output

    def _end_pass(self, module: nn.Module, inputs: tuple[Any, ...], logits: Any) -> None:
        if self._first_pass is None:
            self._first_pass = list(self._read.values()), self._last, logits
        self._read, self._last = {}, None

    def take(self) -> Tensor:
        """Features `[B, D]`, float32, of the first forward pass since the last call.

        Two heads of the same width (distilled DeiT) have the mean of their inputs, others all of them, as in timm's
        `forward_head(pre_logits=True)`. UserError if the model has no layer that is its head.
        """
        assert self._first_pass is not None, "no forward pass"
        read, last, logits = self._first_pass
        self._first_pass = None
        if not read or not all(_is_one_vector_each(inputs) for inputs in read):
            is_head = last is not None and torch.equal(last[1].float(), logits.float())
            read = [last[0]] if last is not None and is_head and _is_one_vector_each(last[0]) else []
        if {len(inputs) for inputs in read} != {len(logits)}:
            model = getattr(self.network, "module", self.network)  # inside Fabric's wrapper
            raise UserError(
                f"{type(model).__name__} does not say what its features are: give it a method get_classifier() "
                "that returns the last layer, which reads them"
            )
        features = [inputs.flatten(1).float() for inputs in read]
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
    compiled = any(map(is_compiled, network.modules()))
    eagerly = torch.compiler.set_stance("force_eager") if compiled else nullcontext()  # imports seconds of compiler
    with torch.no_grad(), eagerly, closing(FeatureRecorder(network)) as recorder:
        logits = network(inputs).float()
        return recorder.take(), logits


def _parts(head: nn.Module) -> list[nn.Module]:
    """The layers of a head that is a list (CrossViT), which is never called itself."""
    return list(head) if isinstance(head, nn.ModuleList) else [head]


def _is_one_vector_each(inputs: Tensor) -> bool:
    """Whether these are `[B, D]` or `[B, D, 1, 1]`."""
    return inputs.shape[:2].numel() == inputs.numel()
