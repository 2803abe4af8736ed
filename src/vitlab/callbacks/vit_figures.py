"""Draw attention, filters and position embeddings of a ViT during training."""

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
from vitlab.models.interpretation import (
    Attention,
    TokenLayout,
    filter_components,
    last_layer,
    mean_attention_distance,
    patch_distances,
    position_similarity,
    record_attention,
    rollout,
    seen_by_head,
    token_layout,
)
from vitlab.models.patch_embedding import ConvolutionalTokenizer, ShiftedPatchTokenization
from vitlab.plots import attention_heatmaps, embeddings
from vitlab.plots.io import never_failing, publish

MOMENTS = {"off": (), "light": (0, 1 / 2, 1), "full": (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)}  # parts of the run
IMAGES = {"light": 6, "full": 10}
# Images for the attention distance, with 64 tokens or more each; few at "light", because the first step waits for them.
DISTANCE_IMAGES = {"light": 32, "full": 128}
TOKENS_AT_ONCE = 2048  # 0.25 GB of attention weights of a ViT-B at 224 px
COMPONENTS = 28  # as in the ViT paper
STEM_FILTERS: dict[type, str] = {
    ConvolutionalTokenizer: "These are the filters of the convolutional stem's first layer.",
    ShiftedPatchTokenization: "These also see shifted patches, half a patch around their own.",
}


class ViTFigures(pl.Callback):
    """Draws the attention of a ViT (rollout and last block) at the start, in the middle and at the end of training; and
    at the end its patch filters, position embeddings and attention distances.

    The middle is that of the steps or of `max_time`, whichever comes first; a run without either is drawn after 1, 2,
    4, 8 ... epochs. Figures of parts that a model does not have are left out. It uses a copy of the model, in eval mode
    and float32, on rank 0: the run is not affected. The maps are saved in checkpoints, so a resumed run draws them next
    to later ones.

    Args:
        level: "off" (or False, as YAML reads it), "light", or "full": more moments, more images, and each head of the
            last block.
    """

    def __init__(self, level: str | bool) -> None:
        if level not in (False, *MOMENTS):
            raise ValueError(f"level={level} of ViTFigures is unknown; choose off, light or full")
        self.level = str(level or "off")
        self.seen: list[dict[str, Any]] = []  # a dict for each moment: plain numbers and tensors

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.steps = pl_module.last_step()
        self.timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)  # type: ignore[attr-defined]
        left = self.timer.time_remaining() if self.timer else None
        self.seconds = math.inf if left is None else left + self._elapsed()
        self._record_if_due(trainer, pl_module, float(trainer.current_epoch))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        epoch = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
        self._record_if_due(trainer, pl_module, epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._draws(trainer, pl_module):
            if not self.seen or self.seen[-1]["step"] < trainer.global_step:  # the run ended early
                self._record(trainer, pl_module, float(trainer.current_epoch))
            with never_failing("what the ViT has learnt"):
                self._draw_end(trainer, pl_module)

    def _elapsed(self) -> float:
        """Seconds of training so far, if they are limited."""
        return self.timer.time_elapsed() if self.timer else 0.0

    def _draws(self, trainer: pl.Trainer, module: Any) -> bool:
        """On rank 0, unless the model is sharded: `python -m vitlab.explain` draws its attention after training."""
        return self.level != "off" and trainer.is_global_zero and not isinstance(module.network, FSDPModule)

    def _record_if_due(self, trainer: pl.Trainer, module: Any, epoch: float) -> None:
        if self._draws(trainer, module) and self._is_due(trainer):
            self._record(trainer, module, epoch)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if not self.seen:
            return True
        step, last = trainer.global_step, self.seen[-1]
        if math.isinf(self.steps) and math.isinf(self.seconds):
            steps_per_epoch = trainer.num_training_batches // trainer.accumulate_grad_batches
            return step >= max(2 * last["step"], steps_per_epoch)
        done = max(step / self.steps, self._elapsed() / self.seconds)
        before = max(last["step"] / self.steps, last["seconds"] / self.seconds)
        return any(done >= moment > before for moment in MOMENTS[self.level])

    def _record(self, trainer: pl.Trainer, module: Any, epoch: float) -> None:
        """Keep the attention maps of this moment, and draw those of all moments so far."""
        moment: dict[str, Any] = {"step": trainer.global_step, "epoch": epoch, "seconds": self._elapsed()}
        self.seen.append(moment)
        with never_failing("the attention of the model"):
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            split = _examined_split(data)
            indices = choose_examples(split.labels, IMAGES[self.level])
            network = _copy_network(module)
            attention = _record_attention(network, data, split, indices, module.device)
            if attention is None:
                return
            moment["rollout"] = seen_by_head(rollout(attention.weights), attention).cpu()
            moment["heads"] = last_layer(attention).cpu()
            if len(self._drawable()) == 1:  # drawn next to those of the end
                moment["distances"] = _attention_distances(network, data, module.device, DISTANCE_IMAGES[self.level])
            # At "light", the start is drawn later, next to the middle, so that the first step does not wait.
            if trainer.global_step or self.level == "full":
                # A run resumed at another level has moments with fewer images, which are the first of these.
                fewest = min(len(moment["rollout"]) for moment in self._drawable())
                self._draw_attention(trainer, data, split.take(indices[:fewest]))

    def _draw_attention(self, trainer: pl.Trainer, data: Any, examples: ImageArrays) -> None:
        names = [data.spec.classes[label] for label in examples.labels.tolist()]
        show = partial(publish, trainer, step=trainer.global_step)
        draw = partial(attention_heatmaps.draw_attention, examples.pick(slice(None)), names)
        rollouts = {_name(moment): moment["rollout"] for moment in self._drawable()}
        last_block = {_name(moment): moment["heads"].mean(dim=1) for moment in self._drawable()}
        show("43_attention_rollout", partial(draw, rollouts), attention_heatmaps.ROLLOUT)
        show("44_attention_last_block", partial(draw, last_block), attention_heatmaps.LAST_BLOCK)
        if self.level == "full":
            heads = {f"head {head}": each for head, each in enumerate(self.seen[-1]["heads"].unbind(dim=1), 1)}
            show("45_attention_heads", partial(draw, heads), attention_heatmaps.HEADS)

    def _draw_end(self, trainer: pl.Trainer, module: Any) -> None:
        show = partial(publish, trainer, step=trainer.global_step)
        components = filter_components(module.network, COMPONENTS)
        if components is not None:
            text = embeddings.FILTERS.add(STEM_FILTERS.get(type(module.network.patch_embed), ""), last=True)
            show("40_patch_filters", partial(embeddings.draw_filters, *components), text)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        layout = token_layout(module.network, (data.image_size, data.image_size))
        if layout is None:
            return
        similarity = position_similarity(module.network, layout)
        if similarity is not None:
            learned = isinstance(module.network.pos_embed, nn.Parameter)
            origin = embeddings.LEARNED_POSITIONS if learned else embeddings.FIXED_POSITIONS
            draw = partial(embeddings.draw_positions, similarity, layout.grid)
            show("41_position_similarity", draw, embeddings.POSITIONS.add(origin, last=True))
        now = self.seen[-1]
        if "rollout" in now:
            count = DISTANCE_IMAGES[self.level]
            now["distances"] = _attention_distances(_copy_network(module), data, module.device, count)
            distances = {_name(moment): moment["distances"] for moment in self.seen if "distances" in moment}
            uniform = patch_distances(layout.grid, _patch_size(layout, data.image_size)).mean().item()
            draw = partial(attention_heatmaps.draw_distances, distances, uniform, data.image_size)
            show("42_attention_distance", draw, attention_heatmaps.DISTANCE)

    def _drawable(self) -> list[dict[str, Any]]:
        return [moment for moment in self.seen if "rollout" in moment]


def choose_examples(labels: Tensor, count: int) -> Tensor:
    """Choose the same images each time, one of each class, then a second one of each, and so on: indices, int64
    `[count]`, for labels int64 `[N]`."""
    turns: Counter[int] = Counter()
    found = []
    for index in epoch_order(len(labels), 0, 0)[:1000].tolist():
        label = int(labels[index])
        found.append((turns[label], label, index))
        turns[label] += 1
    return torch.tensor([index for _, _, index in sorted(found)[:count]])


def _copy_network(module: Any) -> nn.Module:
    return copy.deepcopy(module.network).float().eval()


def _examined_split(data: Any) -> ImageArrays:
    return next(arrays for arrays in map(data.splits.get, ("val", "test", "train")) if len(arrays))


def _record_attention(
    network: nn.Module, data: Any, split: ImageArrays, indices: Tensor, device: torch.device
) -> Attention | None:
    batch = StoredBatch(split.pick(indices).to(device), split.labels[indices].to(device), indices.to(device))
    return record_attention(network, data.prepare_batch(batch, None).images)


def _attention_distances(network: nn.Module, data: Any, device: torch.device, count: int) -> Tensor:
    """Mean attention distance in pixels, float32 `[depth, heads]`, over `count` images of the examined split."""
    layout = token_layout(network, (data.image_size, data.image_size))
    assert layout is not None
    split = _examined_split(data)
    order = epoch_order(len(split), 0, 0)[:count]
    total: Any = 0.0
    for indices in torch.split(order, max(1, TOKENS_AT_ONCE // layout.tokens)):
        attention = _record_attention(network, data, split, indices, device)
        assert attention is not None
        total = total + mean_attention_distance(attention, _patch_size(layout, data.image_size)) * len(indices)
    return (total / len(order)).cpu()


def _patch_size(layout: TokenLayout, image_size: int) -> tuple[float, float]:
    return image_size / layout.grid[0], image_size / layout.grid[1]


def _name(moment: dict[str, Any]) -> str:
    return f"epoch {round(moment['epoch'], 2):g}" if moment["step"] else "start"
