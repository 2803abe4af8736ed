"""Learning rate and weight decay of every parameter, and frozen parts."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from models.test_vision_transformer import make
from test_classifier import Constant, trainer
from test_classifier import make as make_classifier
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from vitlab.data import Batch
from vitlab.errors import UserError
from vitlab.models import head_names, timm_model
from vitlab.optim import Finetuning

LR, DECAY = 0.1, 0.05


def listed(network: nn.Module, **choice: Any) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter that the optimizer has, by name."""
    optimizer = partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY)
    classifier = make_classifier(network, num_classes=10, optimizer=optimizer, finetuning=Finetuning(**choice))
    groups: Any = classifier.configure_optimizers().param_groups  # type: ignore[union-attr]
    names = {parameter: name for name, parameter in network.named_parameters()}
    found: dict[str, Any] = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[parameter] not in found
            found[names[parameter]] = (round(group["lr"], 12), group["weight_decay"])
    return found


def decays(name: str, parameter: torch.Tensor) -> float:
    embeddings = ("cls_token", "reg_token", "pos_embed", "relative_bias.table")
    return DECAY if parameter.ndim > 1 and name not in embeddings else 0.0


def networks() -> list[nn.Module]:
    options = {"registers": 2, "layer_scale": 0.1, "locality_attention": True, "relative_bias": True}
    return [make(pool="cls", **options), make(pool="attention"), timm_model("test_vit", num_classes=10, image_size=32)]


@pytest.mark.parametrize("network", networks(), ids=["ours", "ours, pooled", "timm's"])
def test_full(network: nn.Module) -> None:
    assert listed(network) == {name: (LR, decays(name, p)) for name, p in network.named_parameters()}


@pytest.mark.parametrize("network", networks(), ids=["ours", "ours, pooled", "timm's"])
def test_layer_decay_with_a_head_multiplier(network: Any) -> None:
    depth = len(network.blocks)
    # From the head down: the head, the last block with the final norm, ..., the first block, the stem.
    factors = {"head.": 10.0, "norm.": 0.5, "attn_pool.": 0.5, "patch_embed.": 0.5 ** (depth + 1)}
    factors |= dict.fromkeys(("cls_token", "pos_embed", "reg_token", "relative_bias."), 0.5 ** (depth + 1))
    factors |= {f"blocks.{number}.": 0.5 ** (depth - number) for number in range(depth)}
    expected = {}
    for name, parameter in network.named_parameters():
        (factor,) = [value for prefix, value in factors.items() if name.startswith(prefix)]
        expected[name] = (round(LR * factor, 12), decays(name, parameter))
    assert listed(network, layer_decay=0.5, head_lr_multiplier=10.0) == expected


@pytest.mark.parametrize("network", networks(), ids=["ours", "ours, pooled", "timm's"])
def test_biases_and_norms_with_their_own_rate(network: nn.Module) -> None:
    expected = {
        name: (LR * (10 if name.startswith("head") else 1) * (4 if p.ndim < 2 else 1), decays(name, p))
        for name, p in network.named_parameters()
    }
    assert listed(network, head_lr_multiplier=10.0, bias_lr_multiplier=4.0) == expected


@pytest.mark.parametrize("network", networks(), ids=["ours", "ours, pooled", "timm's"])
def test_head_only(network: nn.Module) -> None:
    assert listed(network, freeze_epochs="all") == {"head.weight": (LR, DECAY), "head.bias": (LR, 0.0)}
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("network", networks(), ids=["ours", "ours, pooled", "timm's"])
def test_temporarily_frozen_parameters_are_in_the_optimizer(network: nn.Module) -> None:
    assert listed(network, freeze_epochs=3, head_lr_multiplier=2.0) == {
        name: (LR * (2 if name.startswith("head") else 1), decays(name, p)) for name, p in network.named_parameters()
    }


@pytest.mark.parametrize(
    ("name", "head"), [("test_resnet", "fc"), ("test_convnext", "head.fc"), ("test_efficientnet", "classifier")]
)
def test_models_other_than_vits(name: str, head: str) -> None:
    network = timm_model(name, num_classes=10, image_size=64)
    own = [f"{head}.weight", f"{head}.bias"]
    assert head_names(network) == own
    rates = {key: lr for key, (lr, _) in listed(network, layer_decay=0.5).items()}
    assert len(rates) == len(list(network.parameters()))
    assert [rates[key] for key in own] == [LR, LR]
    first = next(iter(rates))  # the stem's
    assert all(rate >= rates[first] for rate in rates.values())
    assert rates[first] < LR / 4
    assert set(listed(network, freeze_epochs="all")) == set(own)


class Watched(nn.Module):
    """A head on a backbone with every kind of layer that eval mode changes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.fixed = nn.Parameter(torch.ones(8), requires_grad=False)  # frozen by the model itself
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))
        self.modes: list[tuple[bool, bool, bool]] = []

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            learns = self.body[1].weight.requires_grad
            self.modes.append((self.body[2].training, self.head[0].training, learns))
        return self.head(self.body(images) * self.fixed)


def after(epochs: int, freeze_epochs: int | str) -> tuple[Watched, dict[str, torch.Tensor], pl.Trainer]:
    """A trained model, its initial state, and the trainer."""
    torch.manual_seed(0)
    network = Watched()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    run = trainer(limit_val_batches=1)
    run.fit_loop.max_epochs = epochs
    optimizer = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    classifier = make_classifier(network, optimizer=optimizer, finetuning=Finetuning(freeze_epochs=freeze_epochs))
    draw = torch.Generator().manual_seed(1)
    parts = [Batch(torch.randn(4, 3, 2, 2, generator=draw), torch.tensor([0, 1, 2, 0]), torch.arange(4))] * 3
    images: Any = DataLoader(parts, batch_size=None)  # type: ignore[arg-type]
    run.fit(classifier, images, images)
    return network, before, run


def test_a_linear_probe_leaves_the_backbone_unchanged_bit_for_bit() -> None:
    network, before, _ = after(2, "all")
    assert network.modes == [(False, True, False)] * 6
    for name, tensor in network.state_dict().items():  # running statistics and counters too
        assert torch.equal(tensor, before[name]) == (not name.startswith("head")), name


def test_freezing_ends_after_its_epochs() -> None:
    with pytest.warns(UserWarning, match=r"freeze_epochs=1 covers the whole run"):
        network, before, _ = after(1, 1)
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items() if n.startswith("body"))
    network, before, _ = after(3, 1)
    assert network.modes == [(False, True, False)] * 3 + [(True, True, True)] * 6
    assert not any(torch.equal(t, before[n]) for n, t in network.state_dict().items() if not n.startswith("fixed"))
    assert torch.equal(network.fixed, before["fixed"])
    assert not network.fixed.requires_grad


def test_the_logged_learning_rate_is_the_optimizers() -> None:
    run = trainer()
    network = make(pool="cls").train()
    classifier = make_classifier(
        network, num_classes=10, optimizer=partial(torch.optim.SGD, lr=0.3), finetuning=Finetuning(layer_decay=0.5)
    )
    batch = Batch(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]), torch.arange(2))
    run.fit(classifier, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    assert run.callback_metrics["lr"].item() == pytest.approx(0.3)


def test_a_model_without_get_classifier_is_refused() -> None:
    with pytest.raises(UserError, match=r"Constant does not say what its head is: give it a method get_classifier"):
        make_classifier(Constant(), finetuning=Finetuning(freeze_epochs="all"))


@pytest.mark.parametrize(
    ("freeze_epochs", "options", "refused"),
    [(1, {}, True), (1, {"find_unused_parameters": True}, False), ("all", {}, False), (0, {}, False)],
)
def test_ddp_must_find_frozen_parameters(freeze_epochs: int | str, options: dict[str, bool], refused: bool) -> None:
    classifier = make_classifier(make(), num_classes=10, finetuning=Finetuning(freeze_epochs=freeze_epochs))
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)  # its __init__ needs a process group
    nn.Module.__init__(wrapped)
    wrapped.find_unused_parameters = options.get("find_unused_parameters", False)
    strategy = SimpleNamespace(model=wrapped)
    classifier.trainer = SimpleNamespace(strategy=strategy, max_epochs=5)  # type: ignore[assignment]
    if refused:
        with pytest.raises(UserError, match=r"needs trainer\.strategy=ddp_find_unused_parameters_true"):
            classifier.on_fit_start()
    else:
        classifier.on_fit_start()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay=0.0 must be above 0"),
        ({"layer_decay": 1.1}, "at most 1"),
        ({"head_lr_multiplier": 0}, "head_lr_multiplier=0 must be above 0"),
        ({"bias_lr_multiplier": -1.0}, "bias_lr_multiplier=-1.0 must be above 0"),
        ({"freeze_epochs": -1}, "freeze_epochs=-1 must be a whole number of epochs, 0 or more, or all"),
        ({"freeze_epochs": "some"}, "freeze_epochs=some"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Finetuning(**choice)


def test_layer_wise_rates_need_the_optimizers_rate() -> None:
    classifier = make_classifier(
        make(), num_classes=10, optimizer=torch.optim.AdamW, finetuning=Finetuning(layer_decay=0.5)
    )
    with pytest.raises(UserError, match=r"need optimizer\.lr"):
        classifier.configure_optimizers()
