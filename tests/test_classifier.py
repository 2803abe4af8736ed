"""The LightningModule: loss, metrics, parameter groups, schedules, random numbers."""

import math
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from models.test_vision_transformer import SMALL
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vitlab.classifier import ImageClassifier
from vitlab.data import Batch
from vitlab.losses import CrossEntropy
from vitlab.metrics.evaluation import MeanLoss, rank_classes
from vitlab.models import VisionTransformer


class Constant(nn.Module):
    """Returns the same logits for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([2.0, 1.0, 0.0]))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


class Noise(nn.Module):
    """Records the random numbers that it draws."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.seen: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(torch.rand(()).item())
        return self.weight.expand(len(images), -1)


def batches(labels: list[int], sizes: list[int]) -> DataLoader[Any]:
    parts = torch.tensor(labels).split(sizes)
    return DataLoader([Batch(torch.zeros(len(p), 3, 2, 2), p, torch.arange(len(p))) for p in parts], batch_size=None)


def make(network: nn.Module, **changes: Any) -> ImageClassifier:
    return ImageClassifier(network, **{"num_classes": 3, "loss": CrossEntropy(0.1), "seed": 0, **changes})


def trainer(**changes: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", enable_checkpointing=False, **{"max_epochs": 1, **quiet, **changes})


def test_metrics_are_means_over_images_not_over_batches() -> None:
    loader = batches([0, 0, 0, 0, 0, 0, 0, 1], [7, 1])
    results = trainer().test(make(Constant()), loader, verbose=False)[0]
    log_sum = math.log(sum(math.exp(v) for v in (2, 1, 0)))
    assert results["test/acc"] == pytest.approx(7 / 8)
    assert results["test/loss"] == pytest.approx((7 * (log_sum - 2) + (log_sum - 1)) / 8)  # no label smoothing


def test_training_loss_is_smoothed_and_accuracy_counts_images() -> None:
    run = trainer()
    classifier = make(Constant(), optimizer=partial(torch.optim.SGD, lr=0.0))
    run.fit(classifier, batches([0, 0, 0, 1], [3, 1]))
    labels = torch.tensor([0, 0, 0, 1])
    smoothed = nn.functional.cross_entropy(torch.tensor([[2.0, 1.0, 0.0]]).expand(4, -1), labels, label_smoothing=0.1)
    assert run.callback_metrics["train/loss"].item() == pytest.approx(smoothed.item())
    assert run.callback_metrics["train/acc"].item() == pytest.approx(3 / 4)


def test_mixed_labels_enter_the_loss_by_weight_and_the_accuracy_by_the_larger() -> None:
    shares = torch.tensor([[0.7, 0.0, 0.3], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0], [0.6, 0.4, 0.0]])
    run, classifier = trainer(), make(Constant(), optimizer=partial(torch.optim.SGD, lr=0.0))
    run.fit(classifier, DataLoader([Batch(torch.zeros(4, 3, 2, 2), shares, torch.arange(4))], batch_size=None))
    smoothed = 0.9 * shares + 0.1 / 3
    expected = -(smoothed * torch.tensor([2.0, 1.0, 0.0]).log_softmax(dim=0)).sum(dim=1).mean()
    assert run.callback_metrics["train/loss"].item() == pytest.approx(expected.item())
    assert run.callback_metrics["train/acc"].item() == pytest.approx(2 / 4)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_mixed_labels_work_in_half_precision(precision: Any) -> None:
    run, classifier = trainer(precision=precision), make(Constant(), optimizer=partial(torch.optim.SGD, lr=0.0))
    images, shares = torch.zeros(4, 3, 2, 2), torch.full((4, 3), 1 / 3)
    run.fit(classifier, DataLoader([Batch(images, shares, torch.arange(4))], batch_size=None))
    assert run.callback_metrics["train/loss"].item() == pytest.approx(1.4076, abs=0.02)


def test_only_weights_have_weight_decay() -> None:
    network = VisionTransformer(**{**SMALL, "pool": "cls", "qk_norm": True, "depth": 1, "head_hidden_dim": 8})
    classifier = make(network, num_classes=10, optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05))
    optimizer: Any = classifier.configure_optimizers()
    names = {parameter: name for name, parameter in network.named_parameters()}
    decay = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    weights = {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.0.weight",
        "head.2.weight",
    }
    rest = {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.bias",
        "blocks.0.norm1.weight",
        "blocks.0.norm1.bias",
        "blocks.0.attn.qkv.bias",
        "blocks.0.attn.q_norm.weight",
        "blocks.0.attn.q_norm.bias",
        "blocks.0.attn.k_norm.weight",
        "blocks.0.attn.k_norm.bias",
        "blocks.0.attn.proj.bias",
        "blocks.0.norm2.weight",
        "blocks.0.norm2.bias",
        "blocks.0.mlp.fc1.bias",
        "blocks.0.mlp.fc2.bias",
        "norm.weight",
        "norm.bias",
        "head.0.bias",
        "head.2.bias",
    }
    assert decay == {**dict.fromkeys(weights, 0.05), **dict.fromkeys(rest, 0.0)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_the_schedule_gets_the_number_of_optimizer_steps() -> None:
    seen = []

    def schedule(optimizer: torch.optim.Optimizer, total_steps: int | None) -> Any:
        seen.append(total_steps)
        return torch.optim.lr_scheduler.ConstantLR(optimizer)

    classifier = make(
        Constant(), optimizer=partial(torch.optim.SGD, lr=0.1), scheduler=partial(schedule, total_steps=None)
    )
    trainer(accumulate_grad_batches=2, limit_train_batches=5).fit(classifier, batches([0] * 20, [2] * 10))
    assert seen == [3]  # five batches, two a step, the last one alone


@pytest.mark.parametrize(("interval", "rates"), [("step", [1.0, 0.5, 0.25]), ("epoch", [1.0, 1.0, 1.0])])
def test_the_schedule_moves_at_its_interval(interval: str, rates: list[float]) -> None:
    seen: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    classifier = make(
        Constant(),
        optimizer=partial(torch.optim.SGD, lr=1.0),
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
        interval=interval,
    )
    trainer(callbacks=[Watch()]).fit(classifier, batches([0] * 6, [2] * 3))
    assert seen == rates


def test_dropout_of_a_step_does_not_depend_on_earlier_random_numbers() -> None:
    def draws(disturb: bool, seed: int) -> list[float]:
        class Disturb(pl.Callback):
            def on_train_batch_end(self, *_: Any) -> None:
                if disturb:
                    torch.rand(17)

        network = Noise()
        classifier = make(network, seed=seed, optimizer=partial(torch.optim.SGD, lr=1.0))
        trainer(callbacks=[Disturb()]).fit(classifier, batches([0] * 6, [2] * 3))
        return network.seen

    assert draws(disturb=False, seed=0) == draws(disturb=True, seed=0)
    assert len({*draws(False, seed=0), *draws(False, seed=1)}) == 6


@pytest.mark.parametrize(("interval", "total"), [("step", 6), ("epoch", 2)])
def test_total_steps_are_counted_in_the_schedule_s_interval(interval: str, total: int) -> None:
    seen = []

    def schedule(optimizer: torch.optim.Optimizer, total_steps: int | None) -> Any:
        seen.append(total_steps)
        return torch.optim.lr_scheduler.ConstantLR(optimizer)

    classifier = make(
        Constant(),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        scheduler=partial(schedule, total_steps=None),
        interval=interval,
    )
    run = trainer()
    run.fit_loop.max_epochs = 2
    run.fit(classifier, batches([0] * 6, [2] * 3))
    assert seen == [total]


def test_a_nan_is_not_averaged_away() -> None:
    network = Constant()
    network.logits.data[0] = float("nan")
    assert math.isnan(trainer().test(make(network), batches([0, 1], [1, 1]), verbose=False)[0]["test/loss"])


def test_accumulated_batches_do_not_share_their_dropout() -> None:
    network = Noise()
    classifier = make(network, optimizer=partial(torch.optim.SGD, lr=1.0))
    trainer(accumulate_grad_batches=2).fit(classifier, batches([0] * 8, [2] * 4))
    assert len(set(network.seen)) == 4


def test_equal_logits_are_ranked_as_accuracy_counts_them() -> None:
    logits = torch.randint(0, 3, (1000, 10), generator=torch.Generator().manual_seed(0)).float()
    ranked = rank_classes(logits)
    assert torch.equal(ranked[:, 0], logits.argmax(dim=1))
    assert torch.equal(ranked.sort(dim=1).values, torch.arange(10).expand(1000, -1))


def test_a_rank_without_images_does_not_make_the_loss_nan() -> None:
    loss = MeanLoss()
    loss.update(torch.tensor(2.0), 3)
    loss.update(F.cross_entropy(torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64)), 0)  # NaN
    assert loss.compute() == 2.0


def test_a_mean_of_many_images_is_exact_in_half_precision() -> None:
    (loss,) = torch.nn.ModuleList([MeanLoss()]).to(torch.bfloat16)
    for number in range(400):
        loss.update(torch.tensor(1.0 + number % 2, dtype=torch.bfloat16), 128)
    assert loss.compute() == 1.5


@pytest.mark.parametrize(
    ("max_epochs", "time", "progress"),
    [(4, None, 0.75), (-1, 0.4, 0.4), (4, 0.9, 0.9), (4, 0.1, 0.75), (-1, None, 0.0)],
)
def test_progress_is_that_of_epochs_or_time(max_epochs: int, time: float | None, progress: float) -> None:
    model = make(Constant(), optimizer=partial(torch.optim.SGD, lr=0.1))
    model.time_progress = None if time is None else lambda: time
    trainer(max_epochs=max_epochs, max_steps=1).fit(model, batches([0, 1, 2], [3]))
    assert model.progress(3) == progress
