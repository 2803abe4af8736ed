"""The range of every value that has one."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from vitlab.config.types import NULL, NUMBER, OBJECT, SWITCH, TEXT, Kind, choice, each, is_whole, number, whole

# What a run logs (the contract of metric names), and whether more of it is better.
METRICS = {
    **{f"{split}/loss": "min" for split in ("train", "val")},
    **{f"{split}/acc": "max" for split in ("train", "val")},
    **{"val/loss_ema": "min", "val/acc_ema": "max"},
}
METRIC = choice(*METRICS)
SHARE = number(0, 1, below=True)
LIMIT = Kind(
    "a whole number of batches, or a fraction from 0.0 to 1.0",
    lambda v: (is_whole(v) and v >= 0) or (isinstance(v, float) and 0 <= v <= 1),
)
SOME = Kind(
    "a whole number of batches from 1 on, or a fraction of an epoch up to 1.0",
    lambda v: (is_whole(v) and v >= 1) or (isinstance(v, float) and 0 < v <= 1),
)
LENGTH = whole(1) | Kind("-1 for no limit", lambda value: is_whole(value) and value == -1)
SIDES = whole(1) | Kind("two of them", lambda v: isinstance(v, list) and len(v) == 2 and all(map(whole(1).fits, v)))
DEVICES = Kind(
    "auto, a number of devices, or a list of their numbers",
    lambda v: v == "auto" or (is_whole(v) and (v >= 1 or v == -1)) or (isinstance(v, list) and all(map(is_whole, v))),
)
DURATION = Kind(
    "DD:HH:MM:SS, an object with a _target_",
    lambda v: isinstance(v, dict) or (isinstance(v, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", v) is not None),
)
NUMBERED = Kind("32, 16 or 64", lambda value: value in (16, 32, 64) and not isinstance(value, bool))
PRECISIONS = (
    *("auto", "32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true", "32", "16", "64", "bf16"),
    *("transformer-engine", "transformer-engine-float16"),
)
STRATEGIES = (
    *("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "ddp_spawn", "ddp_fork"),
    *("ddp_notebook", "fsdp", "fsdp_cpu_offload", "deepspeed", "deepspeed_stage_1", "deepspeed_stage_2"),
    *("deepspeed_stage_2_offload", "deepspeed_stage_3", "deepspeed_stage_3_offload"),
)

OFF = Kind("off", lambda value: value is False)  # as YAML reads an unquoted off
FIGURES = choice("off", "light", "full") | OFF

# By path; * stands for one name. A kind is the whole truth of a value: annotations are not asked where there is one.
RULES: Mapping[str, Kind] = {
    "name": Kind("text", lambda value: isinstance(value, str) and bool(value)),
    "seed": whole(0, 2**32 - 1),
    "init_from": TEXT | NULL,
    "init_weights": choice("raw", "ema") | NULL,
    "label_smoothing": SHARE,
    "compile": SWITCH,
    "gradient_checkpointing": SWITCH,
    "matmul_precision": choice("highest", "high", "medium"),
    "preflight": choice("strict", "warn", "only", "off") | OFF,
    "checkpoint.monitor": METRIC,
    "scheduler.monitor": METRIC | NULL,
    "callbacks.nan.action": choice("stop", "skip"),
    "callbacks.figures.level": FIGURES,
    "callbacks.vit_figures.level": FIGURES,
    "callbacks.*.monitor": METRIC | NULL,
    "checkpoint.mode": choice("min", "max"),
    "checkpoint.last_every_n_epochs": whole(1),
    "checkpoint.every_minutes": number(0) | NULL,
    "data.image_size": whole(1) | NULL,
    "data.stored_size": whole(1) | NULL,
    "data.interpolation": choice("bilinear", "bicubic") | NULL,
    "data.num_classes": whole(2) | NULL,
    "data.mean": each(3, NUMBER) | NULL,
    "data.std": each(3, number(0, above=True)) | NULL,
    "data.val_size": number(0),
    "data.test_size": number(0),
    "data.split_seed": whole(0),
    "data.data_seed": whole(0),
    "data.max_train_images": whole(1) | NULL,
    "data.batch_size": whole(1),
    "data.repeated_augmentation": whole(1),
    "data.eval_batch_size": whole(1),
    "data.train_images": whole(1),
    "data.test_images": whole(1),
    "data.noise": number(0),
    "augment.*.p": number(0, 1),
    "augment.*.padding": whole(0),
    "augment.*.alternating": SWITCH,
    "augment.*.num_ops": whole(1),
    "augment.*.magnitude": whole(0, 30),
    "augment.*.area": each(2, number(0, 1)),
    "augment.*.aspect": each(2, number(0, above=True)),
    "augment.*.mixup_alpha": number(0, above=True),
    "augment.*.cutmix_alpha": number(0, above=True),
    "augment.*.cutmix_share": number(0, 1),
    "augment.*.off_share": number(0, 1),
    "optimizer.lr": number(0, above=True),
    "optimizer.weight_decay": number(0),
    "optimizer.momentum": SHARE,
    "optimizer.eps": number(0),
    "optimizer.ns_steps": whole(1),
    "optimizer.adjust_lr_fn": choice("match_rms_adamw", "original", "rms_to_rms"),
    "optimizer.betas": each(2, SHARE),
    "finetune.layer_decay": number(0, 1, above=True),
    "finetune.head_lr_multiplier": number(0, above=True),
    "finetune.freeze_epochs": whole(0) | Kind("all", lambda value: value == "all"),
    "scheduler.interval": choice("step", "epoch"),
    "scheduler.schedule.warmup": number(0),
    "scheduler.schedule.min_lr_ratio": number(0, 1),
    "scheduler.schedule.step_size": whole(1),
    "scheduler.schedule.gamma": number(0, 1, above=True),
    "scheduler.schedule.factor": number(0, 1, above=True),
    "scheduler.schedule.patience": whole(0),
    "scheduler.schedule.mode": choice("min", "max"),
    "trainer.max_epochs": LENGTH | NULL,
    "trainer.max_steps": LENGTH,
    "trainer.sync_batchnorm": SWITCH | Kind("auto", lambda value: value == "auto"),
    "trainer.num_nodes": whole(1) | Kind("auto", lambda value: value == "auto"),
    "trainer.strategy.timeout_seconds": number(0, above=True),
    "trainer.strategy.bucket_cap_mb": whole(1),
    "trainer.strategy.process_group_backend": choice("nccl", "gloo") | NULL,
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.gradient_clip_val": number(0) | NULL,
    "trainer.gradient_clip_algorithm": choice("norm", "value") | NULL,
    "trainer.accelerator": choice("auto", "cpu", "gpu", "cuda", "mps", "tpu") | OBJECT,
    "trainer.devices": DEVICES,
    "trainer.strategy": choice(*STRATEGIES) | OBJECT,
    "trainer.precision": choice(*PRECISIONS) | NUMBERED,
    "trainer.profiler": choice("simple", "advanced", "pytorch") | OBJECT | NULL,
    "trainer.max_time": DURATION | NULL,
    "trainer.limit_train_batches": SOME | NULL,
    "trainer.limit_val_batches": LIMIT | NULL,
    "trainer.limit_test_batches": LIMIT | NULL,
    "trainer.val_check_interval": SOME | NULL,
    "trainer.check_val_every_n_epoch": whole(1) | NULL,
    "trainer.log_every_n_steps": whole(1),
    "callbacks.*.decay": SHARE,
    "callbacks.*.warmup": number(0, above=True),
    "callbacks.*.patience": whole(0),
    "callbacks.*.mode": choice("min", "max"),
    "callbacks.*.refresh_seconds": number(0),
}
# Of vitlab's own networks; another's arguments of the same names may mean something else.
NETWORK_RULES: Mapping[str, Kind] = {
    "model.patch_size": SIDES,
    "model.in_channels": whole(1),
    "model.embed_dim": whole(1),
    "model.depth": whole(1),
    "model.num_heads": whole(1),
    "model.mlp_ratio": number(0, above=True),
    "model.dropout": SHARE | NULL,
    "model.attention_dropout": SHARE,
    "model.drop_path": SHARE | NULL,
    "model.stem": choice("patch", "shifted", "conv"),
    "model.pool": choice("cls", "mean", "attention"),
    "model.registers": whole(0),
    "model.pos_embed": choice("learned", "sincos2d", "none"),
    "model.attention_init": choice("normal", "mimetic"),
    "model.layer_scale": number(0, above=True) | NULL,
    "model.patch_dropout": SHARE,
    "model.activation": choice("gelu", "relu"),
    "model.head_hidden_dim": whole(1) | NULL,
}


def rule_for(path: str, network: str) -> Kind | None:
    """The rule of a value by its path; `network` is the target of the `model` group."""
    tables = (RULES, NETWORK_RULES) if network.startswith("vitlab.") else (RULES,)
    for rules in tables:
        for pattern, rule in rules.items():
            if fnmatchcase(path, pattern) and path.count(".") == pattern.count("."):
                return rule
    return None
