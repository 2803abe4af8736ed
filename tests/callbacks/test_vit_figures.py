import copy
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from data.modules import NEUTRAL
from models.test_vision_transformer import SMALL
from PIL import Image
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from vitlab.callbacks import ViTFigures, vit_figures
from vitlab.classifier import ImageClassifier
from vitlab.data import ImageDataModule
from vitlab.data.arrays import Dataset, ImageArrays
from vitlab.losses import CrossEntropy
from vitlab.models import VisionTransformer
from vitlab.models.interpretation import last_layer
from vitlab.plots.io import read_figures

STEPS = 12  # of 2 epochs
LIGHT = ["40_patch_filters", "41_position_similarity", "42_attention_distance"]
LIGHT += ["43_attention_rollout", "44_attention_last_block"]


class Drawn(ImageDataModule):
    def load(self) -> Dataset:
        generator = torch.Generator().manual_seed(0)

        def split(count: int) -> ImageArrays:
            images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
            return ImageArrays.of(images, torch.arange(count) % 3, [str(number) for number in range(count)])

        return Dataset(split(32), split(8), ["ant", "bee", "cow"])


def train(
    folder: Path,
    level: str | bool,
    network: nn.Module | None = None,
    *,
    checkpoint: Path | None = None,
    beside: Sequence[pl.Callback] = (),
    **options: Any,
) -> tuple[pl.Trainer, ImageClassifier]:
    torch.manual_seed(0)
    if network is None:
        network = VisionTransformer(**{**SMALL, "num_classes": 3}, dropout=0.2, attention_dropout=0.2, drop_path=0.2)
    classifier = ImageClassifier(
        network, num_classes=3, loss=CrossEntropy(0.1), seed=0, optimizer=partial(torch.optim.AdamW, lr=1e-3)
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[ViTFigures(level), *beside],
        default_root_dir=folder,
        logger=TensorBoardLogger(folder, "", "tensorboard"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, **options},
    )
    data = Drawn(**{**NEUTRAL, "augmentations": [], "val_size": 8})
    trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer, classifier


def drawn(folder: Path) -> list[str]:
    return sorted(file.stem for file in (folder / "figures").glob("*.png"))


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageClassifier, torch.Tensor]:
    folder = tmp_path_factory.mktemp("light")
    _, classifier = train(folder, "light")
    return folder, classifier, torch.get_rng_state()


def test_figures_show_several_moments_of_training(light: tuple[Path, Any, Any]) -> None:
    folder = light[0]
    assert drawn(folder) == LIGHT
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    for tag in ("view/learnt/attention_rollout", "view/learnt/attention_last_block"):
        assert [image.step for image in events.Images(tag)] == [STEPS // 2, STEPS]  # the start beside them
    widths = [image.width for image in events.Images("view/learnt/attention_rollout")]
    assert widths == sorted(set(widths))  # beside each other
    for tag in ("patch_filters", "position_similarity", "attention_distance"):
        assert [image.step for image in events.Images(f"view/learnt/{tag}")] == [STEPS]
    with Image.open(folder / "figures" / "43_attention_rollout.png") as figure:
        assert figure.width == widths[-1]
        assert "Abnar" in str(figure.info["Description"])
    said = {figure.tag: figure.caption for figure in read_figures(folder)}
    assert "were learned" in said["learnt/position_similarity"]
    assert "stem" not in said["learnt/patch_filters"]


def test_captions_describe_this_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ViTFigures, "_record", lambda self, *_: self.seen.append({"step": STEPS, "seconds": 0.0}))
    network = VisionTransformer(**{**SMALL, "num_classes": 3, "pos_embed": "sincos2d", "stem": "shifted"})
    train(tmp_path, "light", network, max_epochs=1)
    said = {figure.tag: figure.caption for figure in read_figures(tmp_path)}
    assert "a fixed table (as with pos_embed=sincos2d)" in said["learnt/position_similarity"]
    assert "and were not learned" in said["learnt/position_similarity"]
    assert said["learnt/patch_filters"].endswith("These also see shifted patches, half a patch around their own.")


class Untrained(pl.Callback):
    """Keeps a copy of the module as training starts."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.module = copy.deepcopy(pl_module)


def test_the_start_shows_the_weights_before_the_first_step(tmp_path: Path) -> None:
    untrained = Untrained()
    trainer, classifier = train(tmp_path, "light", beside=[untrained], max_epochs=1)
    (figures,) = (each for each in trainer.callbacks if isinstance(each, ViTFigures))  # type: ignore[attr-defined]
    first = figures.seen[0]
    assert first["step"] == first["epoch"] == 0
    heads = []
    for module in (untrained.module, classifier):
        probe = vit_figures._Probe(trainer, module)
        attention = probe.attention(vit_figures.choose_examples(probe.split.labels, vit_figures.IMAGES["light"]))
        assert attention is not None
        heads.append(last_layer(attention))
    assert torch.equal(first["heads"], heads[0])
    assert not torch.allclose(first["heads"], heads[1])


class Clock(pl.Callback):
    """One second per step, and an end that is not known in advance."""

    steps = 0

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        self.steps += 1
        trainer.should_stop = self.steps >= 30


@pytest.mark.parametrize(("limit", "seen"), [(None, [0, 6, 12, 24, 30]), ("00:00:00:10", [0, 5, 10])])
def test_runs_of_unknown_length_are_drawn_at_growing_intervals(
    limit: str | None, seen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()  # 6 steps an epoch
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, stage=None: float(clock.steps))
    for name in ("_draw_attention", "_draw_end"):
        monkeypatch.setattr(ViTFigures, name, lambda *_: None)
    trainer, _ = train(tmp_path, "light", max_epochs=-1, max_time=limit, beside=[clock])
    (figures,) = (each for each in trainer.callbacks if isinstance(each, ViTFigures))  # type: ignore[attr-defined]
    assert [moment["step"] for moment in figures.seen] == seen


@pytest.mark.parametrize("level", [False, "full"])
def test_drawing_does_not_change_the_run(
    level: str | bool, light: tuple[Path, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vit_figures, "MOMENTS", {"off": (), "full": (0.25,)})
    _, classifier = train(tmp_path, level)
    assert torch.equal(torch.get_rng_state(), light[2])
    for (name, tensor), expected in zip(classifier.state_dict().items(), light[1].state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name
    assert drawn(tmp_path) == ([*LIGHT, "45_attention_heads"] if level else [])


def test_a_resumed_run_draws_earlier_moments_too(
    light: tuple[Path, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vit_figures, "MOMENTS", {"light": (0, 1), "full": (0, 1)})
    trainer, _ = train(tmp_path, "light", max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    seen = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["ViTFigures"]["seen"]
    assert [moment["step"] for moment in seen] == [0, STEPS // 2]
    train(tmp_path / "second", "light", checkpoint=tmp_path / "last.ckpt")
    assert drawn(tmp_path / "second") == LIGHT
    for name in LIGHT:
        went_on, at_once = (folder / "figures" / f"{name}.png" for folder in (tmp_path / "second", light[0]))
        assert went_on.read_bytes() == at_once.read_bytes()
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "third", "full", checkpoint=tmp_path / "last.ckpt")  # more pictures than before
    assert drawn(tmp_path / "third") == [*LIGHT, "45_attention_heads"]
    assert not [message for message in caplog.messages if "left out" in message]


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(64, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def test_a_model_without_attention_has_no_figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(tmp_path, "full", Convolutions())
    assert drawn(tmp_path) == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_failure_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(vit_figures, "record_attention", fail)
    with caplog.at_level(logging.WARNING):
        trainer, _ = train(tmp_path, "light")
    assert trainer.global_step == STEPS
    assert drawn(tmp_path) == LIGHT[:2]
    assert caplog.messages.count("the attention of the model is left out: OutOfMemoryError: no memory left") == 3


def test_examples_show_each_class_first() -> None:
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 50)
    chosen = vit_figures.choose_examples(labels, 5)
    assert labels[chosen].tolist() == [0, 1, 2, 0, 1]
    assert torch.equal(chosen, vit_figures.choose_examples(labels, 5))
    assert len(vit_figures.choose_examples(labels[:2], 5)) == 2
