"""Data modules with neutral settings."""

from typing import Any

NEUTRAL: dict[str, Any] = {
    "image_size": 32,
    "stored_size": None,
    "num_classes": None,
    "classes": None,
    "mean": None,
    "std": None,
    "interpolation": "bicubic",
    "augmentations": [],
    "val_size": 0.25,
    "split_seed": 0,
    "max_train_images": None,
    "batch_size": 4,
    "eval_batch_size": 4,
    "seed": 0,
}
