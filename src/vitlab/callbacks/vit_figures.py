"""What a ViT learns, drawn while it does."""

import copy
import math
from collections import Counter
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from vitlab.data.arrays import ImageArrays
from vitlab.data.loader import StoredBatch, epoch_order
from vitlab.models.attention_maps import Attention, TokenLayout, record_attention, token_layout
from vitlab.models.interpretation import (
    filter_components,
    last_layer,
    mean_attention_distance,
    patch_distances,
    position_similarity,
    rollout,
    seen_by_head,
)
from vitlab.models.patch_embedding import ConvolutionalTokenizer, ShiftedPatchTokenization
from vitlab.plots import attention_heatmaps, embeddings, never_failing, publish
from vitlab.plots.captions import About

MOMENTS = {"off": (), "light": (0, 1 / 2, 1), "full": (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)}  # shares of the run
PICTURES = {"light": 6, "full": 10}
# Of each 64 or more tokens; few in a light run, whose first step waits for them.
DISTANCE_IMAGES = {"light": 32, "full": 128}
TOKENS_AT_ONCE = 2048  # 0.25 GB of attention weights of a ViT-B for 224 px
COMPONENTS = 28  # as many as the ViT paper shows
STEM_FILTERS: dict[type, str] = {
    ConvolutionalTokenizer: "They are those of the convolutional stem's first layer.",
    ShiftedPatchTokenization: "They see shifted patches too, and reach half a patch around theirs.",
}


class ViTFigures(pl.Callback):
    """Draws where a ViT looks (attention rollout, the last block's attention) at the start, in the middle and at the
    end of training, and at the end its patch filters, its position embeddings, and how far each head looks. The middle
    is that of the steps or of `max_time`, which comes first; a run without either is looked at after 1, 2, 4, 8 ...
    epochs.

    What a network does not have is left out. It looks at a copy of the network, in eval mode and float32, on the first
    rank; nothing of the run changes. What was seen is in the checkpoint: a run that goes on draws it beside the rest.

    Args:
        level: "off" (or False, as YAML reads it), "light", or "full": more moments, more images, and each head of the
            last block.
    """

    def __init__(self, level: str | bool) -> None:
        if level not in (False, *MOMENTS):
            raise ValueError(f"level={level} of ViTFigures is unknown; choose off, light or full")
        self.level = str(level or "off")
        self.seen: list[dict[str, Any]] = []  # a dict a moment: plain numbers and tensors

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps = trainer.estimated_stepping_batches  # infinite where their number is open
        self.timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)  # type: ignore[attr-defined]
        left = self.timer.time_remaining() if self.timer else None
        self.seconds = math.inf if left is None else left + self._elapsed()
        self._look_if_due(trainer, pl_module, float(trainer.current_epoch))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._look_if_due(trainer, pl_module, trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.level == "off" or not _whole_here(trainer, pl_module):
            return
        if self._last_step() < trainer.global_step:  # the run ended before its time
            self._look(trainer, pl_module, float(trainer.current_epoch))
        with never_failing("what the ViT has learnt"):
            self._draw_end(trainer, pl_module)

    def _elapsed(self) -> float:
        """Seconds of training so far, where they are limited."""
        return self.timer.time_elapsed() if self.timer else 0.0

    def _last_step(self) -> int:
        return self.seen[-1]["step"] if self.seen else -1

    def _look_if_due(self, trainer: pl.Trainer, module: Any, epoch: float) -> None:
        if self.level != "off" and _whole_here(trainer, module) and self._is_due(trainer):
            self._look(trainer, module, epoch)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if not self.seen:
            return True
        step, last = trainer.global_step, self.seen[-1]
        if math.isinf(self.steps) and math.isinf(self.seconds):
            steps_an_epoch = trainer.num_training_batches // trainer.accumulate_grad_batches
            return step >= max(2 * last["step"], steps_an_epoch)
        done = max(step / self.steps, self._elapsed() / self.seconds)
        before = max(last["step"] / self.steps, last["seconds"] / self.seconds)
        return any(done >= share > before for share in MOMENTS[self.level])

    def _look(self, trainer: pl.Trainer, module: Any, epoch: float) -> None:
        moment: dict[str, Any] = {"step": trainer.global_step, "epoch": epoch, "seconds": self._elapsed()}
        self.seen.append(moment)
        with never_failing("the attention of the network"):
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            split = _looked_at(data)
            places = examples(split.labels, PICTURES[self.level])
            network = _as_it_is(module)
            found = _record(network, data, split, places, module.device)
            if found is None:
                return
            moment["rollout"] = seen_by_head(rollout(found.weights), found).cpu()
            moment["heads"] = last_layer(found).cpu()
            if len(self._drawable()) == 1:  # they are drawn beside those of the end
                moment["distances"] = _distances(network, data, module.device, DISTANCE_IMAGES[self.level])
            # It is drawn beside what comes of it, and the first step does not wait.
            if not trainer.global_step and self.level == "light":
                return
            # A run that goes on with another level has moments of fewer pictures, the first of them.
            fewest = min(len(moment["rollout"]) for moment in self._drawable())
            self._draw_moment(trainer, data, split.take(places[:fewest]))

    def _draw_moment(self, trainer: pl.Trainer, data: Any, shown: ImageArrays) -> None:
        images, names = shown.pick(slice(None)), [data.spec.classes[label] for label in shown.labels.tolist()]
        show = partial(publish, trainer, step=trainer.global_step)
        rollouts = {_name(moment): moment["rollout"] for moment in self._drawable()}
        last = {_name(moment): moment["heads"].mean(dim=1) for moment in self._drawable()}
        draw = partial(attention_heatmaps.draw_attention, images, names)
        show("43_attention_rollout", partial(draw, rollouts), **attention_heatmaps.ROLLOUT)
        show("44_attention_last_block", partial(draw, last), **attention_heatmaps.LAST_BLOCK)
        if self.level == "full":
            heads = self.seen[-1]["heads"]
            show(
                "45_attention_heads",
                partial(attention_heatmaps.draw_heads, images, names, heads),
                **attention_heatmaps.HEADS,
            )

    def _draw_end(self, trainer: pl.Trainer, module: Any) -> None:
        show = partial(publish, trainer, step=trainer.global_step)
        components = filter_components(module.network, COMPONENTS)
        if components is not None:
            of_stem = STEM_FILTERS.get(type(module.network.patch_embed), "")
            said = _with(embeddings.FILTERS, of_stem)
            show("40_patch_filters", partial(embeddings.draw_filters, *components), **said)
        side: int = trainer.datamodule.image_size  # type: ignore[attr-defined]
        layout = token_layout(module.network, (side, side))
        if layout is None:
            return
        similarity = position_similarity(module.network, layout)
        if similarity is not None:
            draw = partial(embeddings.draw_positions, similarity, layout.grid)
            learned = isinstance(module.network.pos_embed, nn.Parameter)
            said = _with(embeddings.POSITIONS, embeddings.LEARNED_POSITIONS if learned else embeddings.FIXED_POSITIONS)
            show("41_position_similarity", draw, **said)
        now = self.seen[-1]
        if "rollout" in now:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            now["distances"] = _distances(_as_it_is(module), data, module.device, DISTANCE_IMAGES[self.level])
            distances = {_name(moment): moment["distances"] for moment in self.seen if "distances" in moment}
            uniform = patch_distances(layout.grid, _patch_size(layout, side)).mean().item()
            draw = partial(attention_heatmaps.draw_distances, distances, uniform, side)
            show("42_attention_distance", draw, **attention_heatmaps.DISTANCE)

    def _drawable(self) -> list[dict[str, Any]]:
        return [moment for moment in self.seen if "rollout" in moment]


def examples(labels: Tensor, count: int) -> Tensor:
    """Places of the same images each time, int64 `[count]`: one of each class, then a second one of each, and so on.

    Args:
        labels: int64 `[N]`.
        count: Of images.
    """
    turns: Counter[int] = Counter()
    found = []
    for place in epoch_order(len(labels), 0, 0)[:1000].tolist():
        label = int(labels[place])
        found.append((turns[label], label, place))
        turns[label] += 1
    return torch.tensor([place for _, _, place in sorted(found)[:count]])


def _with(about: About, further: str) -> About:
    return {**about, "caption": f"{about['caption']} {further}".rstrip()}


def _whole_here(trainer: pl.Trainer, module: Any) -> bool:
    """On the first rank, unless no rank has the whole network; `python -m vitlab.explain` looks at that afterwards."""
    return trainer.is_global_zero and not isinstance(module.network, FSDPModule)


def _as_it_is(module: Any) -> nn.Module:
    return copy.deepcopy(module.network).float().eval()


def _looked_at(data: Any) -> ImageArrays:
    return next(arrays for arrays in map(data.splits.get, ("val", "test", "train")) if len(arrays))


def _record(
    network: nn.Module, data: Any, split: ImageArrays, places: Tensor, device: torch.device
) -> Attention | None:
    chosen = StoredBatch(split.pick(places).to(device), split.labels[places].to(device), places.to(device))
    return record_attention(network, data.prepare_batch(chosen, None).images)


def _distances(network: nn.Module, data: Any, device: torch.device, count: int) -> Tensor:
    """Mean attention distance in pixels, float32 `[depth, heads]`, over the first `count` images of the evaluation."""
    layout = token_layout(network, (data.image_size, data.image_size))
    assert layout is not None
    patch = _patch_size(layout, data.image_size)
    split = _looked_at(data)
    order = epoch_order(len(split), 0, 0)[:count]
    total: Any = 0.0
    for places in torch.split(order, max(1, TOKENS_AT_ONCE // layout.tokens)):
        found = _record(network, data, split, places, device)
        assert found is not None
        total = total + mean_attention_distance(found, patch) * len(places)
    return (total / len(order)).cpu()


def _patch_size(layout: TokenLayout, image_size: int) -> tuple[float, float]:
    return image_size / layout.grid[0], image_size / layout.grid[1]


def _name(moment: dict[str, Any]) -> str:
    return f"epoch {round(moment['epoch'], 2):g}" if moment["step"] else "start"
