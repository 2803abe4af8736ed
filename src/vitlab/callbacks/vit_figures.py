"""Draw attention, filters and position embeddings of a ViT during training."""

import copy
import math
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from vitlab.callbacks.figures import publish
from vitlab.data.arrays import ImageArrays
from vitlab.data.loader import StoredBatch, epoch_order
from vitlab.models.interpretation import (
    Attention,
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
from vitlab.plots import vit_plots
from vitlab.plots.io import never_failing

MOMENTS = {"off": (), "light": (0, 1 / 2, 1), "full": (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)}  # parts of the run
IMAGES = {"light": 6, "full": 10}
# Images for the attention distance, with 64 tokens or more each; few at "light", because training waits for them.
DISTANCE_IMAGES = {"light": 32, "full": 128}
TOKENS_AT_ONCE = 2048  # 0.25 GB of attention weights of a ViT-B at 224 px
ATTENTION = "the attention of the model"
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
    `level` is "off" (or False, as YAML reads it), "light", or "full": more moments and images, and each head of the
    last block.
    """

    def __init__(self, level: str | bool) -> None:
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
        # Of a sharded model, `python -m vitlab.explain` draws the attention after training.
        sharded = isinstance(pl_module.network, FSDPModule)
        self.draws = self.level != "off" and trainer.is_global_zero and not sharded
        self.start: tuple[dict[str, Any], _Probe] | None = None
        if self.draws and self._is_due(trainer):  # looked at later, so that the first step does not wait
            with never_failing(ATTENTION):
                self.start = self._moment(trainer, float(trainer.current_epoch)), _Probe(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.start is not None:
            (moment, probe), self.start = self.start, None
            self.seen.append(moment)
            with never_failing(ATTENTION):
                self._look(trainer, moment, probe)
        if self.draws and self._is_due(trainer):
            self._record(trainer, pl_module, trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.draws:
            if not self.seen or self.seen[-1]["step"] < trainer.global_step:  # the run ended early
                self._record(trainer, pl_module, float(trainer.current_epoch))
            with never_failing("what the ViT has learned"):
                self._draw_end(trainer, pl_module)

    def _elapsed(self) -> float:
        """Seconds of training so far, if they are limited."""
        return self.timer.time_elapsed() if self.timer else 0.0

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

    def _moment(self, trainer: pl.Trainer, epoch: float) -> dict[str, Any]:
        return {"step": trainer.global_step, "epoch": epoch, "seconds": self._elapsed()}

    def _record(self, trainer: pl.Trainer, module: Any, epoch: float) -> None:
        moment = self._moment(trainer, epoch)
        self.seen.append(moment)
        with never_failing(ATTENTION):
            self._look(trainer, moment, _Probe(trainer, module))

    def _look(self, trainer: pl.Trainer, moment: dict[str, Any], probe: "_Probe") -> None:
        """Keep the attention maps of a moment, and draw those of all moments so far."""
        indices = choose_examples(probe.split.labels, IMAGES[self.level])
        attention = probe.attention(indices)
        if attention is None:
            return
        moment["rollout"] = seen_by_head(rollout(attention.weights), attention).cpu()
        moment["heads"] = last_layer(attention).cpu()
        if len(self._drawable()) == 1:  # drawn next to those of the end
            moment["distances"] = probe.distances(DISTANCE_IMAGES[self.level])
        if moment["step"] or self.level == "full":  # at "light", the start is drawn later, next to the middle
            # A run resumed at another level has moments with fewer images, which are the first of these.
            fewest = min(len(moment["rollout"]) for moment in self._drawable())
            self._draw_attention(trainer, probe.split.take(indices[:fewest]))

    def _draw_attention(self, trainer: pl.Trainer, examples: ImageArrays) -> None:
        classes = trainer.datamodule.spec.classes  # type: ignore[attr-defined]
        images, names = examples.pick(slice(None)), [classes[label] for label in examples.labels.tolist()]
        rollouts = {_name(moment): moment["rollout"] for moment in self._drawable()}
        last_block = {_name(moment): moment["heads"].mean(dim=1) for moment in self._drawable()}
        draw = partial(vit_plots.draw_attention, images, names)
        publish(trainer, "43_attention_rollout", vit_plots.ROLLOUT, draw, rollouts)
        publish(trainer, "44_attention_last_block", vit_plots.LAST_BLOCK, draw, last_block)
        if self.level == "full":
            heads = {f"head {head}": each for head, each in enumerate(self.seen[-1]["heads"].unbind(dim=1), 1)}
            publish(trainer, "45_attention_heads", vit_plots.HEADS, draw, heads)

    def _draw_end(self, trainer: pl.Trainer, module: Any) -> None:
        components = filter_components(module.network, COMPONENTS)
        if components is not None:
            text = vit_plots.FILTERS.add(STEM_FILTERS.get(type(module.network.patch_embed), ""), last=True)
            publish(trainer, "40_patch_filters", text, vit_plots.draw_filters, *components)
        size: int = trainer.datamodule.image_size  # type: ignore[attr-defined]
        layout = token_layout(module.network, (size, size))
        if layout is None:
            return
        similarity = position_similarity(module.network, layout)
        if similarity is not None:
            learned = isinstance(module.network.pos_embed, nn.Parameter)
            text = vit_plots.POSITIONS.add(vit_plots.POSITION_ORIGIN[learned], last=True)
            publish(trainer, "41_position_similarity", text, vit_plots.draw_positions, similarity, layout.grid)
        if "rollout" in self.seen[-1]:
            self.seen[-1]["distances"] = _Probe(trainer, module).distances(DISTANCE_IMAGES[self.level])
            distances = {_name(moment): moment["distances"] for moment in self.seen if "distances" in moment}
            uniform = patch_distances(layout.grid, _patch_size(layout.grid, size)).mean().item()
            draw = partial(vit_plots.draw_distances, distances, uniform, size)
            publish(trainer, "42_attention_distance", vit_plots.DISTANCE, draw)

    def _drawable(self) -> list[dict[str, Any]]:
        return [moment for moment in self.seen if "rollout" in moment]


def choose_examples(labels: Tensor, count: int) -> Tensor:
    """Choose the same images each time, one of each class, then a second one of each, and so on: indices, int64
    `[count]`, for labels int64 `[N]`."""
    order = epoch_order(len(labels), 0, 0)[:1000]
    one_hot = nn.functional.one_hot(labels[order])
    turn = (one_hot.cumsum(dim=0) * one_hot).sum(dim=1)  # the first image of its class, the second ...
    return order[(turn * one_hot.shape[1] + labels[order]).argsort()[:count]]


class _Probe:
    """A copy of the model, in eval mode and float32, and the split whose images it is shown."""

    def __init__(self, trainer: pl.Trainer, module: Any) -> None:
        self.data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.split: ImageArrays = next(s for s in map(self.data.splits.get, ("val", "test", "train")) if len(s))
        self.network = copy.deepcopy(module.network).float().eval().cpu()  # the step may need all of a GPU's memory
        self.device = module.device

    def attention(self, indices: Tensor) -> Attention | None:
        images, labels, device = self.split.pick(indices), self.split.labels[indices], self.device
        batch = StoredBatch(images.to(device), labels.to(device), indices.to(device))
        return record_attention(self.network.to(device), self.data.prepare_batch(batch, None).images)

    def distances(self, count: int) -> Tensor:
        """Mean attention distance in pixels, float32 `[depth, heads]`, over `count` images."""
        size = self.data.image_size
        layout = token_layout(self.network, (size, size))
        assert layout is not None
        order = epoch_order(len(self.split), 0, 0)[:count]
        total: Any = 0.0
        for indices in torch.split(order, max(1, TOKENS_AT_ONCE // layout.tokens)):
            attention = self.attention(indices)
            assert attention is not None
            total = total + mean_attention_distance(attention, _patch_size(layout.grid, size)) * len(indices)
        return (total / len(order)).cpu()


def _patch_size(grid: tuple[int, int], image_size: int) -> tuple[float, float]:
    return image_size / grid[0], image_size / grid[1]


def _name(moment: dict[str, Any]) -> str:
    return f"epoch {round(moment['epoch'], 2):g}" if moment["step"] else "start"
