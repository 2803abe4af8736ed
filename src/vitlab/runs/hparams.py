"""Select the settings that runs are compared by, the most important first."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Setting = float | str

# Config path -> name in a report. A group is shown by the name of the class or function that it builds.
KEY_SETTINGS = {
    "optimizer.lr": "learning rate",
    "augment": "augmentation",
    "model": "model",
    "data.batch_size": "batch size",
    "trainer.max_epochs": "maximum epochs",
    "trainer.max_steps": "maximum optimizer steps",
    "trainer.max_time": "time limit",
    "data": "data set",
    "model.patch_size": "patch size (px)",
    "model.embed_dim": "embedding dimension",
    "model.depth": "depth (blocks)",
    "model.num_heads": "attention heads",
    "model.patch_dropout": "patch dropout (fraction)",
    "optimizer": "optimizer",
    "optimizer.weight_decay": "weight decay",
    "scheduler": "learning rate schedule",
    "scheduler.schedule.warmup": "warmup (below 1: fraction of the run, else steps)",
    "trainer.gradient_clip_val": "gradient clipping threshold",
    "loss": "loss",
    "loss.label_smoothing": "label smoothing",
    "trainer.precision": "precision",
    "seed": "seed",
}
ALL_OF = ("model", "augment", "loss", "optimizer", "finetune", "scheduler")
FURTHER = (
    *("data.image_size", "data.max_train_images", "data.repeated_augmentation", "data.val_size", "data.split_seed"),
    "callbacks.ema.decay",
    *("trainer.accumulate_grad_batches", "trainer.limit_train_batches"),
)
REDUNDANT = ("model.name", "model.image_size", "model.in_channels", "model.num_classes")


def hparams_of(config: Mapping[str, Any]) -> dict[str, Setting]:
    """The values of `KEY_SETTINGS` that a resolved config sets, by path, in the same order."""
    # Last augmentation first: the first ones are common to most runs, and a narrow column cuts off the rest.
    active = [node for node in config["augment"].values() if node is not None and node.get("p") != 0]
    augmentations = [_built(node) for node in reversed(active)]
    named = {
        "model": config["model"].get("name") or _built(config["model"]),
        "data": data_set(config),
        "optimizer": _built(config["optimizer"]),
        "augment": ", ".join(augmentations) or "none",
        "loss": _built(config["loss"]),
        "scheduler": _built(config["scheduler"]["schedule"]),
    }
    flat = flatten(config) | named
    return dict(_plain({path: flat.get(path) for path in KEY_SETTINGS}))


def data_set(config: Mapping[str, Any]) -> str:
    """The name of the data set: of the folder or file, else of the data module (`CIFAR10`)."""
    source = _built(config["data"]).removesuffix("DataModule")
    data = config["data"]
    if source == "ImageFolder":
        return Path(data["root"]).resolve().name
    return str(data["name"]) if source == "Torchvision" else Path(data["file"]).stem if source == "CSV" else source


def all_settings(config: Mapping[str, Any]) -> dict[str, Setting]:
    """The key settings, then all other numbers, switches and words that change training; no lists and no paths."""
    flat = flatten(config)
    paths = [path for path in flatten({group: config[group] for group in ALL_OF}) if "._" not in path]
    rest = {path: flat.get(path) for path in (*paths, *FURTHER) if path not in REDUNDANT}
    return {**hparams_of(config), **dict(_plain(rest))}


def flatten(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`{"optimizer.lr": 0.001}` from `{"optimizer": {"lr": 0.001}}`; an empty dict is a value."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        inner = f"{path}.{key}" if path else str(key)
        flat |= flatten(value, inner) if isinstance(value, Mapping) and value else {inner: value}
    return flat


def _built(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _plain(values: Mapping[str, Any]) -> Iterator[tuple[str, Setting]]:
    for path, value in values.items():
        if isinstance(value, bool):
            yield path, str(value).lower()
        elif (isinstance(value, int | float) and value != -1) or (isinstance(value, str) and "/" not in value):
            yield path, value  # -1 is no limit
