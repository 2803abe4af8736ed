"""Puts weights into a network that may differ from the one they come from."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.models import VisionTransformer, head_names
from vitlab.models.patch_embedding import PatchEmbedding
from vitlab.weights.formats import Weights

log = logging.getLogger(__name__)

Shapes = dict[str, tuple[list[int], list[int]]]  # in the file, in the network


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor.

    Args:
        loaded: Names of those that were put into the network, of all that the network has.
        fraction: Of the network's values, those that were loaded.
        resampled: Position and patch embeddings that were brought to another size.
        new_head: The head's parameters where they stay random: the file has no head, or one of other classes.
        reshaped: Others whose shape in the file is not the network's: left out, random in the network.
        missing: Not in the file: random in the network.
        unexpected: In the file alone.
    """

    loaded: list[str]
    fraction: float
    resampled: Shapes
    new_head: list[str]
    reshaped: Shapes
    missing: list[str]
    unexpected: list[str]

    @property
    def complete(self) -> bool:
        """Whether all but the head came from the file, and nothing in the file is left over."""
        return not (self.reshaped or self.missing or self.unexpected)

    def describe(self, origin: str) -> str:
        """Some lines for people."""
        total = len(self.loaded) + len(self.new_head) + len(self.reshaped) + len(self.missing)
        lines = [f"weights: {len(self.loaded)} of {total} tensors ({self.fraction:.1%} of the values) from {origin}"]
        if self.resampled:
            lines.append(f"  resampled: {_shapes(self.resampled)}")
        if self.new_head:
            lines.append(f"  new head, random: {', '.join(self.new_head)}")
        if self.reshaped:
            lines.append(f"  of another shape in the file, random here: {_shapes(self.reshaped)}")
        if self.missing:
            lines.append(f"  missing in the file, random here: {_some(self.missing)}")
        if self.unexpected:
            lines.append(f"  in the file alone, left out: {_some(self.unexpected)}")
        return "\n".join(lines)


def fit_weights(network: nn.Module, weights: Weights, classes: Sequence[str]) -> LoadReport:
    """Loads what fits into a network, in place.

    A position embedding of another image size and a patch embedding of another patch size are resampled; a head of
    other classes is left out, as is all whose name or shape the network does not have. Of timm's networks, files in the
    formats of their authors are translated as timm does it.

    Args:
        network: What the weights go into.
        weights: With at least one tensor.
        classes: Of the network's head, in order.

    Raises:
        UserError: nothing in the file fits the network, or it holds NaNs.
    """
    state = _translate(network, weights)
    own = network.state_dict()
    before = {name: list(tensor.shape) for name, tensor in weights.state.items()}
    resampled: Shapes = {
        name: (before[name], list(tensor.shape))
        for name, tensor in state.items()
        if name in own and name in before and before[name] != list(tensor.shape)
    }
    fitting = {name: tensor for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}
    other_classes = weights.classes is not None and list(classes) != weights.classes
    head = head_names(network)
    new_head = head if other_classes or any(name not in fitting for name in head) else []
    loaded = {name: tensor for name, tensor in fitting.items() if name not in new_head}
    left = [name for name in own if name not in loaded and name not in new_head]
    if not loaded:
        raise UserError(
            f"nothing in {weights.origin} fits the model: its tensors are {_first(weights.state)} ..., the model's are "
            f"{_first(own)} ...; choose the model that the weights were made with (model.name or its sizes)"
        )
    for name, tensor in loaded.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{weights.origin} is spoilt: {name} holds values that are no finite numbers")
    network.load_state_dict(loaded, strict=False)
    values = sum(tensor.numel() for tensor in own.values())
    return LoadReport(
        loaded=[name for name in own if name in loaded],
        fraction=sum(own[name].numel() for name in loaded) / values,
        resampled=resampled,
        new_head=new_head,
        reshaped={name: (list(state[name].shape), list(own[name].shape)) for name in left if name in state},
        missing=[name for name in left if name not in state],
        unexpected=[name for name in state if name not in own],
    )


def _translate(network: nn.Module, weights: Weights) -> dict[str, Tensor]:
    state = dict(weights.state)
    if isinstance(network, VisionTransformer):
        return _resample(state, network)
    # The same function that timm applies to what it downloads: names of the authors' own, resampling.
    module = type(network).__module__
    timm_s_filter = getattr(sys.modules[module], "checkpoint_filter_fn", None) if module.startswith("timm.") else None
    if timm_s_filter is None:
        return state
    try:
        return dict(timm_s_filter(state, network))
    except Exception as error:  # it takes a file of the network's kind for granted
        log.info("timm can't translate %s: %s", weights.origin, error)
        return state


def _resample(state: dict[str, Tensor], network: VisionTransformer) -> dict[str, Tensor]:
    patches = state.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim == 4 and isinstance(network.patch_embed, PatchEmbedding):
        patch_size = network.patch_embed.proj.kernel_size
        if patches.shape[2:] != patch_size:
            state["patch_embed.proj.weight"] = resample_patch_embed(patches, list(patch_size))
    positions, mine = state.get("pos_embed"), network.pos_embed
    if positions is None or mine is None:
        return state
    prefix = network.num_prefix_tokens
    count = positions.shape[1] - prefix
    if positions.shape[1] != mine.shape[1] and isqrt(count) ** 2 == count:
        state["pos_embed"] = resample_abs_pos_embed(positions, list(network.grid_size), num_prefix_tokens=prefix)
    if not isinstance(mine, nn.Parameter) and torch.equal(positions, mine):
        del state["pos_embed"]  # the file keeps the fixed positions that the network makes itself
    return state


def _first(state: Mapping[str, Tensor]) -> str:
    name, tensor = next(iter(state.items()))
    return f"{name} {list(tensor.shape)}"


def _shapes(shapes: Shapes) -> str:
    return _some([f"{name} {old} -> {new}" for name, (old, new) in shapes.items()])


def _some(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
