"""What runs are compared by, the most telling first."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Setting = float | str

# By path, in the words of a report. Groups stand for the name of what they build.
KEY_SETTINGS = {
    "optimizer.lr": "learning rate",
    "augment": "augmentation",
    "model": "network",
    "data.batch_size": "batch size",
    "trainer.max_epochs": "epochs at most",
    "trainer.max_steps": "optimizer steps at most",
    "trainer.max_time": "time at most",
    "data": "images",
    "model.patch_size": "patch size (px)",
    "model.embed_dim": "width of a token",
    "model.depth": "depth (blocks)",
    "model.num_heads": "heads",
    "model.patch_dropout": "patches left out (share)",
    "optimizer": "optimizer",
    "optimizer.weight_decay": "weight decay",
    "scheduler": "learning rate over time",
    "scheduler.schedule.warmup": "warm-up (below 1: share of the run, else steps)",
    "trainer.gradient_clip_val": "gradient clipping at",
    "label_smoothing": "label smoothing",
    "trainer.precision": "precision",
    "seed": "seed",
}
ALL_OF = ("model", "augment", "optimizer", "finetune", "scheduler")
FURTHER = (
    *("data.image_size", "data.max_train_images", "data.repeated_augmentation", "data.val_size", "data.split_seed"),
    "callbacks.ema.decay",
    *("trainer.accumulate_grad_batches", "trainer.limit_train_batches"),
)
SAID_ELSEWHERE = ("model.name", "model.image_size", "model.in_channels", "model.num_classes")


def hparams_of(config: Mapping[str, Any]) -> dict[str, Setting]:
    """Those of `KEY_SETTINGS` that a resolved config has, by their paths, in that order."""
    # The last one first: the first ones are common to most runs, and a narrow column shows no more.
    acting = [node for node in config["augment"].values() if node is not None and node.get("p") != 0]
    augmentations = [_built(node) for node in reversed(acting)]
    named = {
        "model": config["model"].get("name") or _built(config["model"]),
        "data": data_set(config),
        "augment": ", ".join(augmentations) or "none",
        "scheduler": _built(config["scheduler"]["schedule"]),
    }
    return dict(_plain({p: named[p] if p in named else _at(config, p) for p in KEY_SETTINGS}))


def data_set(config: Mapping[str, Any]) -> str:
    """The name of the images: of their folder, else of their source (`CIFAR10`)."""
    source = _built(config["data"]).removesuffix("DataModule")
    return Path(config["data"]["root"]).resolve().name if source == "ImageFolder" else source


def all_settings(config: Mapping[str, Any]) -> dict[str, Setting]:
    """The key settings, then what else runs may be compared by: numbers, switches, words; no lists, paths, plumbing."""
    rest = {path: value for group in ALL_OF for path, value in _leaves(config[group], group)}
    rest |= {path: _at(config, path) for path in FURTHER}
    return {**hparams_of(config), **dict(_plain({p: v for p, v in rest.items() if p not in SAID_ELSEWHERE}))}


def _leaves(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.{key}")
        elif not str(key).startswith("_"):
            yield f"{path}.{key}", value


def _at(config: Mapping[str, Any], path: str) -> Any:
    node: Any = config
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return _built(node) if isinstance(node, Mapping) else node


def _built(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _plain(values: Mapping[str, Any]) -> Iterator[tuple[str, Setting]]:
    for path, value in values.items():
        if isinstance(value, bool):
            yield path, str(value).lower()
        elif (isinstance(value, int | float) and value != -1) or (isinstance(value, str) and "/" not in value):
            yield path, value  # -1 is no limit
