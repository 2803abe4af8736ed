"""Every YAML file in conf/ composes and gives objects."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, ROOT
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vitlab.components import build_classifier, build_data
from vitlab.config.compose import describe_mistakes
from vitlab.config.instantiate import build, build_network
from vitlab.config.resolve import resolve_machine
from vitlab.experiment import resolve
from vitlab.models import VisionTransformer
from vitlab.runs.loggers import build_loggers
from vitlab.weights import weights_to_start_from

CONF = ROOT / "conf"
GROUPS = (
    "model",
    "data",
    "augment",
    "loss",
    "optimizer",
    "finetune",
    "scheduler",
    "trainer",
    "callbacks",
    "logger",
    "debug",
    "experiment",
    "sweep",
)
CHOICES = [f"{group}={file.stem}" for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]


# Keys that a choice leaves to the user.
NEEDED = {
    "data=image_folder": ["data.root=nowhere"],
    "data=csv": ["data.file=nowhere.csv"],
    "data=torchvision": ["data.name=SVHN"],
}


LONG = ["trainer.max_time=00:00:30:00", "trainer.max_epochs=-1"]
NEEDED_TO_TRAIN = {**NEEDED, "scheduler=time_budget": LONG, "scheduler=linear_time_budget": LONG}


def mistakes_of(*overrides: str, conf: Path = CONF) -> tuple[DictConfig, list[str]]:
    """The composed config without Hydra's node, and its mistakes."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose("train", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        found = describe_mistakes(config)
    del config.hydra
    return config, found


def composed(folder: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"hydra.runtime.output_dir={folder}", *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    del config.hydra
    return config


def test_every_file_belongs_to_a_group() -> None:
    files = {file.relative_to(CONF).as_posix() for file in CONF.rglob("*.yaml")}
    grouped = {choice.replace("=", "/") + ".yaml" for choice in CHOICES}
    others = {
        *(
            "train.yaml",
            "app.yaml",
            "embed.yaml",
            "evaluate.yaml",
            "predict.yaml",
            "explain.yaml",
            "export.yaml",
            "bench.yaml",
            "augmentations.yaml",
            "leaderboard.yaml",
            "help.yaml",
            "foreign_words.yaml",
        ),
        *("resume.yaml", "reproduce.yaml"),
        *("hydra/job_logging/run_log.yaml", "hydra/sweeper/optuna.yaml"),
        *(f"hydra/sweeper/{file}.yaml" for file in ("sampler/tpe", "sampler/random")),
        *(f"hydra/sweeper/pruner/{name}.yaml" for name in ("median", "hyperband", "none")),
        *(f"hydra/launcher/{name}.yaml" for name in ("processes", "submitit_slurm", "submitit_local")),
    }
    assert files == grouped | others


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_composes_and_gives_objects(choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.config.gpus.check_gpus", lambda *_: None)  # the GPU of trainer=gpu is not there
    folder = f"hydra.runtime.output_dir={tmp_path}"
    config, mistakes = mistakes_of(folder, choice, *NEEDED_TO_TRAIN.get(choice, []))
    assert mistakes == [] or choice in ("logger=wandb", "logger=mlflow")  # which need their packages
    resolve_machine(config)
    config.data.num_classes = config.data.num_classes or 10
    if "pretrained" in config.model:
        config.model.pretrained = False  # nothing is downloaded here
        config = resolve(config, weights_to_start_from(config))
        assert (config.data.image_size, list(config.data.mean)) == (224, [0.5, 0.5, 0.5])
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    build_data(config)
    model = OmegaConf.to_yaml(config.model, resolve=True)
    assert output_shape(model, config.data.image_size) == (2, 10)
    with torch.device("meta"):  # parameters without numbers: up to 86 M
        network = build_network(config.model)
    classifier = build_classifier(config, network)
    classifier.trainer = FakeTrainer()  # type: ignore[assignment]
    classifier.time_progress = lambda: 0.5
    wiring: Any = classifier.configure_optimizers()
    assert wiring["optimizer"].param_groups[0]["lr"] > 0
    assert wiring["lr_scheduler"]["interval"] in ("step", "epoch")
    for name, node in config.callbacks.items():
        build(node, f"callbacks.{name}")
    if config.trainer.accelerator in ("auto", "cpu"):
        build(config.trainer, "trainer", logger=False)
    if choice not in ("logger=wandb", "logger=mlflow"):
        build_loggers(config.logger, None)


@cache
def output_shape(model: str, side: int) -> tuple[int, ...]:
    """The shape of the logits of two images; most choices have the same model."""
    network: Any = build_network(OmegaConf.create(model))
    with torch.inference_mode():
        return tuple(network(torch.randn(2, 3, side, side)).shape)


class FakeTrainer:
    estimated_stepping_batches = 1000
    check_val_every_n_epoch = 1


def test_the_notebook_s_fine_tuning_has_its_numbers(tmp_path: Path) -> None:
    config = composed(tmp_path, "experiment=notebook_pretrained")
    optimizer = build(config.optimizer, "optimizer")
    assert (optimizer.func, optimizer.keywords["lr"]) == (torch.optim.Adam, 1e-4)
    schedule = config.scheduler.schedule
    assert (schedule._target_, schedule.step_size, schedule.gamma) == ("torch.optim.lr_scheduler.StepLR", 5, 0.1)
    assert (config.data.batch_size, config.trainer.max_epochs, list(config.augment)) == (32, 10, ["flip"])


def test_both_routes_of_cifar10_finetune(tmp_path: Path) -> None:
    config = composed(tmp_path, "experiment=cifar10_finetune")
    assert config.optimizer._target_ == "torch.optim.SGD"
    assert (config.optimizer.momentum, config.optimizer.lr, config.trainer.gradient_clip_val) == (0.9, 0.01, 1.0)
    assert config.data.batch_size * config.trainer.accumulate_grad_batches == 128
    assert config.trainer.max_steps == 5000
    other = ["optimizer=adamw", "optimizer.lr=1e-4", "finetune=layer_decay", "finetune.layer_decay=0.7"]
    config = composed(tmp_path, "experiment=cifar10_finetune", *other)
    assert config.optimizer._target_ == "torch.optim.AdamW"
    assert (config.optimizer.lr, config.finetune.layer_decay) == (1e-4, 0.7)


def test_strong_augmentation_is_that_of_the_published_recipe(tmp_path: Path) -> None:
    config = composed(tmp_path, "augment=strong")
    data = build_data(config)
    kinds = ["RandomCrop", "RandomHorizontalFlip", "AutoAugment", "RandomErasing"]
    assert [type(module).__name__ for module in data.augmentations] == kinds
    assert (config.augment.erasing.p, list(config.augment.erasing.area)) == (0.25, [0.02, 0.4])
    assert data.mixing is not None
    assert (data.mixing.p, data.mixing.cutmix_share) == (0.5, 0.5)
    assert (config.augment.mixing.mixup_alpha, config.augment.mixing.cutmix_alpha) == (1.0, 1.0)
    assert data.repeated_augmentation == 1  # the source's sampler repeats no image either


@pytest.mark.parametrize("augment", ["basic", "randaugment", "trivialaugment", "autoaugment"])
def test_erasing_and_mixing_go_with_each_augmentation_and_come_last(augment: str, tmp_path: Path) -> None:
    data = build_data(composed(tmp_path, f"augment={augment}"))
    assert data.mixing is None
    config = composed(tmp_path, f"augment={augment}", "augment.erasing.p=0.5", "augment.mixing.p=1")
    data = build_data(config)
    assert data.mixing is not None
    assert data.augmentations[-1].p == 0.5
    assert list(config.augment)[-2:] == ["erasing", "mixing"]


def test_facts_flow_from_their_owner(tmp_path: Path) -> None:
    config = composed(tmp_path, "data.image_size=64", "data.num_classes=7")
    assert (config.model.image_size, config.model.num_classes) == (64, 7)


def test_cifar10_s_facts(tmp_path: Path) -> None:
    config = composed(tmp_path)
    assert config.data.classes == CLASSES
    assert config.data.val_size == 5000


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        ("vit_scratch", 4.0),
        ("vit_tiny", 5.4),
        ("vit_small", 21.3),
        ("vit_base", 85.1),
        ("vit_hybrid", 3.8),
        ("vit_pretrained", 85.8),
    ],
)
def test_models_have_the_size_they_say(model: str, millions: float, tmp_path: Path) -> None:
    config = composed(tmp_path, f"model={model}", "data.num_classes=10")
    config.data.image_size = config.data.image_size or 224
    with torch.device("meta"):
        network = build_network(config.model)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions
    assert f"{millions} M parameters" in (CONF / "model" / f"{model}.yaml").read_text()


def test_the_notebook_s_network_has_its_sizes(tmp_path: Path) -> None:
    config = composed(tmp_path, "experiment=notebook_scratch", "data.num_classes=10")
    network: VisionTransformer = build_network(config.model)
    assert network.grid_size == (14, 14)
    assert network.blocks[0].mlp.fc1.weight.shape == (1024, 768)
    assert (len(network.blocks), network.blocks[0].attn.num_heads) == (6, 8)
    assert (config.optimizer.lr, config.data.batch_size, config.trainer.max_epochs) == (1e-3, 32, 5)


def test_every_value_that_people_turn_is_declared(tmp_path: Path) -> None:
    turned = (
        "precision strategy devices num_nodes accumulate_grad_batches gradient_clip_val max_epochs max_steps max_time "
        "limit_train_batches limit_val_batches limit_test_batches deterministic benchmark profiler sync_batchnorm"
    )
    assert set(turned.split()) <= set(composed(tmp_path).trainer)
