"""The allowed range of each value, by its path or by the class it belongs to."""

import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from omegaconf import OmegaConf

from vitlab.config.types import ANYTHING, NULL, NUMBER, OBJECT, SWITCH, TEXT, Kind, choice, each, number, whole
from vitlab.metrics import CHOICES, METRICS

# In YAML files: ${count:${data.classes}}.
OmegaConf.register_new_resolver("count", lambda items: None if items is None else len(items), replace=True)

FRACTION = number(0, 1)
BELOW_ONE = number(0, 1, below=True)
POSITIVE = number(0, above=True)
RATIO = number(0, 1, above=True)
SIDE = whole(1) | each(whole(1), 2)
LIMIT = replace(whole(0) | FRACTION, words="a whole number of batches, or a fraction from 0.0 to 1.0")
INTERVAL = replace(
    whole(1) | RATIO, words="a whole number of batches of at least 1, or a fraction of an epoch up to 1.0"
)
LENGTH = whole(1) | replace(whole(-1, -1), words="-1 for no limit")
DEVICES = replace(
    choice("auto") | whole(-1, -1) | whole(1) | each(whole(0)),
    words="auto, a number of devices, or a list of their indices",
)
TIME = re.compile(r"(?=.*[1-9])\d+:\d\d:\d\d:\d\d", re.ASCII)
DURATION = Kind("DD:HH:MM:SS above 0", lambda v: isinstance(v, str) and bool(TIME.fullmatch(v))) | OBJECT
OFF = Kind("off", lambda v: v is False)  # as YAML reads an unquoted off
MODE = choice("min", "max")
OWN_METRIC = Kind(
    "{name: {_target_: ...}} with a name of its own",
    lambda v: isinstance(v, dict) and len(v) == 1 and not set(v) & set(METRICS),
)

# vitlab's own settings. Those without a range are here for their names.
SETTINGS: Mapping[str, Kind] = {
    "name": Kind("text", lambda v: isinstance(v, str) and bool(v)),
    "run_dir": ANYTHING,
    "tags": each(TEXT),
    "notes": TEXT | NULL,
    "init_from": TEXT | NULL,
    "init_weights": choice("raw", "ema") | NULL,
    "seed": whole(0, 2**32 - 1),
    "metrics": each(choice(*CHOICES) | OWN_METRIC),
    "compile": SWITCH | choice("auto", "blocks"),
    "gradient_checkpointing": SWITCH,
    "preflight": choice("strict", "warn", "only", "off") | OFF,
    "matmul_precision": choice("highest", "high", "medium"),
    "checkpoint.monitor": TEXT,
    "checkpoint.save_top_k": whole(1) | replace(whole(-1, -1), words="-1 for all"),
    "checkpoint.every_n_epochs": whole(1) | NULL,
    "checkpoint.last_every_n_epochs": whole(1),
    "checkpoint.every_minutes": number(0) | NULL,
    "scheduler.schedule": ANYTHING,
    "scheduler.interval": choice("step", "epoch"),
    "scheduler.monitor": TEXT | NULL,
    "data.image_size": whole(1) | NULL,
    "data.stored_size": whole(1) | NULL,
    "data.interpolation": choice("bilinear", "bicubic") | NULL,
    "data.num_classes": whole(2) | NULL,
    "data.mean": each(NUMBER, 3) | NULL,
    "data.std": each(POSITIVE, 3) | NULL,
    "data.val_size": number(0),
    "data.split_seed": whole(0),
    "data.folds": whole(2) | NULL,
    "data.fold": whole(0),
    "data.sampling": choice("shuffled", "balanced"),
    "data.max_train_images": whole(1) | NULL,
    "data.repeated_augmentation": whole(1),
    "data.batch_size": whole(1),
    "data.eval_batch_size": whole(1),
}
OPTIONAL = {"checkpoint.mode": MODE}  # for a metric that vitlab does not know

# By target (* stands for any characters): the names of parameters, and their range. It replaces the annotation, which
# checks all other parameters.
PARAMETERS: Mapping[str, Mapping[str, Kind]] = {
    "vitlab.models.VisionTransformer": {
        "patch_size": SIDE,
        "embed_dim depth num_heads": whole(1),
        "mlp_ratio": POSITIVE,
        "dropout attention_dropout drop_path patch_dropout": BELOW_ONE,
        "registers": whole(0),
        "layer_scale": POSITIVE | NULL,
        "head_hidden_dim": whole(1) | NULL,
    },
    "vitlab.losses.*": {
        "label_smoothing": BELOW_ONE,
        "class_weights": choice("balanced") | each(number(0)) | NULL,
        "gamma": number(0),
        "target_threshold": FRACTION | NULL,
    },
    "vitlab.models.timm_model": {"dropout drop_path": BELOW_ONE | NULL},
    "vitlab.data.ImageFolderDataModule": {"test_size": number(0) | NULL},
    "vitlab.data.SyntheticDataModule": {"train_images test_images": whole(1), "noise": number(0)},
    "vitlab.data.RandomCrop": {"padding": whole(0)},
    "vitlab.data.Random*Flip": {"p": FRACTION},
    "vitlab.data.RandomGrayscale": {"p": FRACTION},
    "vitlab.data.RandomResizedCrop": {"scale": each(RATIO, 2), "ratio": each(POSITIVE, 2)},
    "vitlab.data.ColorJitter": {"p": FRACTION, "brightness contrast saturation": number(0), "hue": number(0, 0.5)},
    "vitlab.data.GaussianBlur": {"p": FRACTION, "kernel_size": whole(1), "sigma": each(POSITIVE, 2)},
    "vitlab.data.RandomErasing": {"p": FRACTION, "area": each(FRACTION, 2), "aspect": each(POSITIVE, 2)},
    "vitlab.data.RandAugment": {"num_ops": whole(1), "magnitude": whole(0, 30)},
    "vitlab.data.Mixing": {"p cutmix_share off_share": FRACTION, "mixup_alpha cutmix_alpha": POSITIVE},
    "torch.optim.*Adam*": {"lr": POSITIVE, "betas": each(BELOW_ONE, 2), "eps weight_decay": number(0)},
    "torch.optim.SGD": {"lr": POSITIVE, "momentum": BELOW_ONE, "weight_decay": number(0)},
    "vitlab.optim.Muon": {
        "lr": POSITIVE,
        "weight_decay": number(0),
        "momentum": BELOW_ONE,
        "betas": each(BELOW_ONE, 2),
        "fallback_lr_scale": POSITIVE,
        "ns_steps": whole(1),
        "adjust_lr_fn": choice("match_rms_adamw", "original", "rms_to_rms"),
    },
    "vitlab.optim.Finetuning": {
        "layer_decay": RATIO,
        "head_lr_multiplier bias_lr_multiplier": POSITIVE,
        "freeze_epochs": whole(0) | choice("all"),
    },
    "vitlab.optim.cosine_*": {"warmup": number(0), "min_lr_ratio": FRACTION},
    "vitlab.optim.linear_*": {"warmup": number(0), "min_lr_ratio": FRACTION},
    "torch.optim.lr_scheduler.StepLR": {"step_size": whole(1), "gamma": RATIO},
    "torch.optim.lr_scheduler.ConstantLR": {"factor": RATIO},
    "torch.optim.lr_scheduler.ReduceLROnPlateau": {"factor": BELOW_ONE, "patience": whole(0), "mode": MODE},
    "pytorch_lightning.Trainer": {
        "max_epochs": LENGTH | NULL,
        "max_steps": LENGTH,
        "max_time": DURATION | NULL,
        "accelerator": choice("auto", "cpu", "gpu", "mps") | OBJECT,
        "devices": DEVICES,
        "num_nodes": whole(1) | choice("auto"),
        "strategy": choice("auto", "ddp", "ddp_find_unused_parameters_true") | OBJECT,
        "precision": choice("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed"),
        "accumulate_grad_batches log_every_n_steps": whole(1),
        "gradient_clip_val": number(0) | NULL,
        "gradient_clip_algorithm": choice("norm", "value") | NULL,
        "limit_train_batches val_check_interval": INTERVAL | NULL,
        "limit_val_batches limit_test_batches": LIMIT | NULL,
        "check_val_every_n_epoch": whole(1) | NULL,
        "sync_batchnorm": SWITCH | choice("auto"),
        "profiler": choice("simple", "advanced", "pytorch") | OBJECT | NULL,
    },
    "vitlab.distributed.strategies.*": {
        "timeout_seconds": POSITIVE,
        "bucket_cap_mb": whole(1),
        "process_group_backend": choice("nccl", "gloo") | NULL,
    },
    "vitlab.callbacks.NaNGuard": {"action": choice("stop", "skip")},
    "vitlab.callbacks.*Figures": {"level": choice("off", "light", "full") | OFF},
    "vitlab.callbacks.Features": {"level": choice("off", "light", "full") | OFF, "knn_images": whole(0) | NULL},
    "vitlab.callbacks.EMA": {"decay": BELOW_ONE, "warmup": POSITIVE},
    "vitlab.callbacks.MomentumWarmup": {"start end": BELOW_ONE, "ramp_steps": whole(1)},
    "vitlab.callbacks.RunProgressBar": {"refresh_seconds": number(0)},
    "vitlab.callbacks.PatchDropoutStages": {"fractions": each(BELOW_ONE)},
    "pytorch_lightning.callbacks.EarlyStopping": {"patience": whole(0), "mode": MODE},
    "pytorch_lightning.callbacks.ModelCheckpoint": {"mode": MODE},
}


def parameter_range(target: str, name: str) -> Kind | None:
    """The range of a target's parameter, if it has one."""
    ranges = (ranges for pattern, ranges in PARAMETERS.items() if fnmatchcase(target, pattern))
    return next((kind for names in ranges for key, kind in names.items() if name in key.split()), None)
