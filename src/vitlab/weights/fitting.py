"""Fit weights into a model that may differ from the one they come from."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed, resize_rel_pos_bias_table_simple
from torch import Tensor, nn

from vitlab.errors import UserError, list_some
from vitlab.models import VisionTransformer, head_names
from vitlab.models.patch_embedding import PatchEmbedding
from vitlab.weights.loading import Weights
from vitlab.weights.translation import with_timm_names

log = logging.getLogger(__name__)

RELATIVE_BIASES = "relative_bias.table"

Shapes = dict[str, tuple[list[int], list[int]]]  # in the file, in the model


@dataclass(frozen=True)
class LoadReport:
    """Which tensors were loaded, and which were not."""

    loaded: list[str]
    fraction: float  # of the model's values that were loaded
    resampled: Shapes  # position and patch embeddings, and relative biases, that were resized
    new_head: list[str]  # if it stays random: the file has no head, or one for other classes
    reshaped: Shapes  # other tensors with another shape in the file: random in the model
    missing: list[str]  # in the file: random in the model
    unexpected: list[str]  # only in the file

    @property
    def complete(self) -> bool:
        """Whether everything except the head came from the file, and all of it was used."""
        return not (self.reshaped or self.missing or self.unexpected)

    def describe(self, origin: str) -> str:
        """Format the report in a few lines for people."""
        total = len(self.loaded) + len(self.new_head) + len(self.reshaped) + len(self.missing)
        lines = [f"weights: {len(self.loaded)} of {total} tensors ({self.fraction:.1%} of the values) from {origin}"]
        parts = {
            "resampled": _format_shapes(self.resampled),
            "new head, random": self.new_head,
            "another shape in the file, random here": _format_shapes(self.reshaped),
            "missing in the file, random here": self.missing,
            "only in the file, not used": self.unexpected,
        }
        return "\n".join(lines + [f"  {title}: {list_some(names, 6)}" for title, names in parts.items() if names])


def fit_weights(network: nn.Module, weights: Weights, classes: Sequence[str]) -> LoadReport:
    """Load all weights that fit into a model, in place.

    Position embeddings and relative biases of another image size and patch embeddings of another patch size are
    resampled. A head for other classes is left out. ViTs of Google, Hugging Face and torchvision are translated, and
    files in the formats of a timm model's authors as timm does it. UserError if nothing in the file fits the model, or
    it holds NaN or infinity.
    """
    own = network.state_dict()
    if not own.keys() & weights.state.keys():
        weights = replace(weights, state=with_timm_names(weights.state))
    state = _translate(network, weights)
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
            raise UserError(f"{weights.origin} holds NaN or infinite values in {name}")
    network.load_state_dict(loaded, strict=False)
    return LoadReport(
        loaded=[name for name in own if name in loaded],
        fraction=sum(own[name].numel() for name in loaded) / sum(tensor.numel() for tensor in own.values()),
        resampled=_changed_shapes(weights.state, {name: state[name] for name in state if name in own}),
        new_head=new_head,
        reshaped=_changed_shapes(state, {name: own[name] for name in left}),
        missing=[name for name in left if name not in state],
        unexpected=[name for name in state if name not in own],
    )


def _translate(network: nn.Module, weights: Weights) -> dict[str, Tensor]:
    state = dict(weights.state)
    if isinstance(network, VisionTransformer):
        return _resample(state, network)
    # The function that timm applies to its downloads: it translates names and resamples.
    module = type(network).__module__
    translate = getattr(sys.modules[module], "checkpoint_filter_fn", None) if module.startswith("timm.") else None
    try:
        return dict(translate(state, network)) if translate else state
    except Exception as error:  # it assumes a file for this kind of model
        log.info("timm cannot translate %s: %s", weights.origin, error)
        return state


def _resample(state: dict[str, Tensor], network: VisionTransformer) -> dict[str, Tensor]:
    patches = state.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim == 4 and isinstance(network.patch_embed, PatchEmbedding):
        patch_size = list(network.patch_embed.proj.kernel_size)
        state["patch_embed.proj.weight"] = resample_patch_embed(patches, patch_size)
    biases = state.get(RELATIVE_BIASES)
    if biases is not None and biases.ndim == 2 and network.relative_bias is not None:
        shape = tuple(network.relative_bias.table.shape)
        if biases.shape[0] != shape[0] and isqrt(biases.shape[0]) ** 2 == biases.shape[0]:
            state[RELATIVE_BIASES] = resize_rel_pos_bias_table_simple(biases, network.grid_size, shape)
    positions, own = state.get("pos_embed"), network.pos_embed
    if positions is None or own is None or positions.ndim != 3:
        return state
    prefix = network.num_prefix_tokens
    count = positions.shape[1] - prefix
    if positions.shape[1] != own.shape[1] and count > 0 and isqrt(count) ** 2 == count:
        state["pos_embed"] = resample_abs_pos_embed(positions, list(network.grid_size), num_prefix_tokens=prefix)
    if not isinstance(own, nn.Parameter) and torch.equal(positions, own):
        del state["pos_embed"]  # fixed positions, which the model computes itself
    return state


def _changed_shapes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Shapes:
    return {
        name: (list(before[name].shape), list(tensor.shape))
        for name, tensor in after.items()
        if name in before and before[name].shape != tensor.shape
    }


def _first(state: Mapping[str, Tensor]) -> str:
    name, tensor = next(iter(state.items()))
    return f"{name} {list(tensor.shape)}"


def _format_shapes(shapes: Shapes) -> list[str]:
    return [f"{name} {old} -> {new}" for name, (old, new) in shapes.items()]
