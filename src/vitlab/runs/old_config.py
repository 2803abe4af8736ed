"""Update the config of a run that an earlier version wrote."""

from typing import Any

from vitlab.config.instantiate import map_texts

# Targets -> their names today.
RENAMED_TARGETS = {
    "vitlab.ranks.strategies.DataParallel": "vitlab.distributed.strategies.DataParallel",
    "vitlab.ranks.strategies.FullySharded": "vitlab.distributed.strategies.FullySharded",
    "vitlab.callbacks.FiniteLoss": "vitlab.callbacks.NaNGuard",
    "vitlab.callbacks.RunProgress": "vitlab.callbacks.RunProgressBar",
}
# Values of `trainer` -> their names today.
RENAMED_VALUES = {
    "precision": {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"},
    "accelerator": {"cuda": "gpu"},
}
# What a run could be told to monitor: the metric tells the mode.
MONITORS = ("train/loss", "val/loss", "train/acc", "val/acc", "val/loss_ema", "val/acc_ema")


def update_old_config(config: Any) -> Any:
    """Bring a run's config, plain data, to the names, values and keys of this version."""
    config = map_texts(config, lambda text: RENAMED_TARGETS.get(text, text))
    if not isinstance(config, dict):
        return config
    groups = (config.get(name) for name in ("model", "checkpoint", "trainer"))
    model, checkpoint, trainer = (group if isinstance(group, dict) else {} for group in groups)
    if model.get("_target_") == "vitlab.models.VisionTransformer" and model.get("in_channels") == 3:
        del model["in_channels"]
    if checkpoint.get("monitor") in MONITORS:
        checkpoint.pop("mode", None)
    if isinstance(trainer.get("profiler"), dict) and "warmup_steps" in trainer["profiler"]:
        trainer["profiler"] = None  # the profiler of debug=profile takes other keys today
    if "label_smoothing" in config:  # before there were other losses and metrics
        smoothing = config.pop("label_smoothing")
        config["loss"] = {"_target_": "vitlab.losses.CrossEntropy", "label_smoothing": smoothing, "class_weights": None}
        config |= {"metrics": [], "tags": [], "notes": None}
        checkpoint.setdefault("save_top_k", 1)
        checkpoint.setdefault("every_n_epochs", None)
    for key, renamed in RENAMED_VALUES.items():
        if str(trainer.get(key)) in renamed:
            trainer[key] = renamed[str(trainer[key])]
    return config
