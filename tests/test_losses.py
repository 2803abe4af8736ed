"""Test the losses against those of torch, timm and torchvision, and class weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import SMALL_RUN, Command
from timm.loss import BinaryCrossEntropy as TimmBCE
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from vitlab.errors import UserError
from vitlab.losses import BinaryCrossEntropy, ClassLoss, CrossEntropy, Focal, balanced_weights

FEW_IMAGES = ["data.train_images=150", "data.test_images=40"]
LOSSES: list[type[Any]] = [CrossEntropy, BinaryCrossEntropy, Focal]


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 3, 3, 3])
MIXED = torch.tensor([[0.7, 0.3, 0, 0], [0, 0, 0, 1], [0.5, 0, 0, 0.5], [0, 0.9, 0.1, 0], [1, 0, 0, 0], [0, 0, 1, 0]])


def test_losses_equal_those_of_the_libraries(logits: Tensor) -> None:
    close = torch.testing.assert_close
    close(CrossEntropy(0.1)(logits, LABELS), F.cross_entropy(logits, LABELS, label_smoothing=0.1))
    close(CrossEntropy()(logits, MIXED), SoftTargetCrossEntropy()(logits, MIXED))
    close(BinaryCrossEntropy(0.1)(logits, LABELS), TimmBCE(smoothing=0.1)(logits, LABELS))
    close(BinaryCrossEntropy(target_threshold=0.2)(logits, MIXED), TimmBCE(target_threshold=0.2)(logits, MIXED))
    # Of two classes, a softmax is the sigmoid of the difference.
    two = logits[:, :2]
    binary = sigmoid_focal_loss(two[:, 1] - two[:, 0], LABELS.clamp(max=1).float(), alpha=-1, gamma=1.5)
    close(Focal(gamma=1.5)(two, LABELS.clamp(max=1)), binary.mean())
    close(Focal(gamma=0.0, label_smoothing=0.1)(logits, MIXED), CrossEntropy(0.1)(logits, MIXED))


@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["classes", "mixed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_evaluation_leaves_out_label_smoothing(loss: type[ClassLoss], labels: Tensor, logits: Tensor) -> None:
    plain, smoothed = loss(), loss(label_smoothing=0.2)
    assert smoothed(logits, labels) != plain(logits, labels)
    torch.testing.assert_close(smoothed.eval()(logits, labels), plain(logits, labels))


@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights_weigh_the_images_of_a_class(loss: type[ClassLoss], logits: Tensor) -> None:
    weights = [0.5, 1.0, 2.0, 0.0]
    each = torch.stack([loss()(logits[[i]], LABELS[[i]]) for i in range(len(LABELS))])
    expected = (each * torch.tensor(weights)[LABELS]).mean()
    torch.testing.assert_close(loss(class_weights=weights)(logits, LABELS), expected)
    one_hot = F.one_hot(LABELS, 4).float()
    torch.testing.assert_close(loss(class_weights=weights)(logits, one_hot), expected)
    with pytest.raises(UserError, match=r"class_weights has 3 numbers: give 4"):
        loss(class_weights=[1.0, 1.0, 1.0])(logits, LABELS)


@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights_may_be_whole_numbers_and_in_half_precision(loss: type[ClassLoss], logits: Tensor) -> None:
    expected = loss(class_weights=[1.0, 2.0, 4.0, 0.0])(logits, LABELS)
    whole = loss(class_weights=[1, 2, 4, 0])
    torch.testing.assert_close(whole(logits, LABELS), expected)
    torch.testing.assert_close(whole.to(torch.bfloat16)(logits, LABELS), expected)  # as trainer.precision=bf16-true


def test_smoothing_does_not_lift_targets_over_the_threshold(logits: Tensor) -> None:
    loss = BinaryCrossEntropy(label_smoothing=0.1, target_threshold=0.0)
    both = (MIXED > 0).float()
    torch.testing.assert_close(loss(logits, MIXED), BinaryCrossEntropy(label_smoothing=0.1)(logits, both))


def test_balanced_weights_let_classes_count_equally() -> None:
    weights = torch.tensor(balanced_weights(LABELS, 4))
    totals = torch.zeros(4).index_add(0, LABELS, weights[LABELS])
    torch.testing.assert_close(totals, torch.full((4,), 1.5), atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="1 of 5 classes"):
        balanced_weights(LABELS, 5)


def test_a_function_that_needs_other_arguments_is_refused(in_process: Command) -> None:
    result = in_process("train.py", "loss._target_=torchvision.ops.masks_to_boxes")
    assert result.returncode == 2
    assert "loss lacks masks" in result.stderr


@pytest.mark.parametrize(
    "choice", ["bce", "focal", "soft_target", "torch.nn.MultiMarginLoss", "torch.nn.functional.multi_margin_loss"]
)
def test_a_run_trains_and_evaluates_with_each_loss(choice: str, in_process: Command, tmp_path: Path) -> None:
    given = [f"loss._target_={choice}"] if "." in choice else [f"loss={choice}", "loss.class_weights=balanced"]
    short = [*SMALL_RUN, *FEW_IMAGES, "trainer.max_epochs=1", "preflight=strict", "callbacks=ema", "hydra.run.dir=run"]
    result = in_process("train.py", *short, *given)
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    if "." not in choice:
        assert len(config["loss"]["class_weights"]) == 10
    final = (tmp_path / "run" / "metrics.json").read_text()
    assert in_process("evaluate.py", "run=run", "trusted_targets=[torch.]").returncode == 0
    again = yaml.safe_load((tmp_path / "run" / "evaluation_test.json").read_text())
    suffix = "_ema" if again["weights"] == "ema" else ""
    assert again["test/loss"] == yaml.safe_load(final)[f"test/loss{suffix}"]
