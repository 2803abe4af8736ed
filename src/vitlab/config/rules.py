"""The range of every value that has one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from vitlab.config.annotations import is_number, is_whole


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words, and the test of it."""

    words: str
    holds: Callable[[Any], bool]

    def __or__(self, other: "Rule") -> "Rule":
        return Rule(f"{self.words}, or {other.words}", lambda value: self.holds(value) or other.holds(value))


def whole(low: int, high: int | None = None) -> Rule:
    words = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return Rule(words, lambda v: is_whole(v) and v >= low and (high is None or v <= high))


def number(low: float, high: float = float("inf"), *, above: bool = False, below: bool = False) -> Rule:
    """From `low` to `high`, without the ends that `above` and `below` leave out."""
    words = f"a number {'above' if above else 'of at least'} {low:g}"
    if high != float("inf"):
        words += f" and {'below' if below else 'at most'} {high:g}"

    def holds(value: Any) -> bool:
        if not is_number(value):
            return False
        over = value > low if above else value >= low
        return over and (value < high if below else value <= high)

    return Rule(words, holds)


def choice(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: value in names)


def each(count: int, rule: Rule) -> Rule:
    return Rule(
        f"a list of {count}, each {rule.words}",
        lambda value: isinstance(value, list) and len(value) == count and all(map(rule.holds, value)),
    )


NULL = Rule("null", lambda value: value is None)
SWITCH = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("text", lambda value: isinstance(value, str) and bool(value))
SHARE = number(0, 1, below=True)
LIMIT = Rule(
    "a whole number of batches, or a fraction from 0.0 to 1.0",
    lambda v: (is_whole(v) and v >= 0) or (isinstance(v, float) and 0 <= v <= 1),
)
INTERVAL = Rule(
    "a whole number of batches from 1 on, or a fraction of an epoch up to 1.0",
    lambda v: (is_whole(v) and v >= 1) or (isinstance(v, float) and 0 < v <= 1),
)
LENGTH = whole(1) | Rule("-1 for no limit", lambda value: is_whole(value) and value == -1)
SIDES = whole(1) | Rule("two of them", lambda v: isinstance(v, list) and len(v) == 2 and all(map(whole(1).holds, v)))

# By path; * stands for one name. A rule is the whole truth of a value: annotations are not asked where there is one.
RULES: Mapping[str, Rule] = {
    "name": TEXT,
    "seed": whole(0, 2**32 - 1),
    "label_smoothing": SHARE,
    "compile": SWITCH,
    "matmul_precision": choice("highest", "high", "medium"),
    "preflight": Rule("one of strict, warn, only, off", lambda v: v in ("strict", "warn", "only", "off", False)),
    "checkpoint.mode": choice("min", "max"),
    "checkpoint.last_every_n_epochs": whole(1),
    "data.image_size": whole(1) | NULL,
    "data.stored_size": whole(1) | NULL,
    "data.interpolation": choice("bilinear", "bicubic") | NULL,
    "data.num_classes": whole(2) | NULL,
    "data.mean": each(3, number(float("-inf"))) | NULL,
    "data.std": each(3, number(0, above=True)) | NULL,
    "data.val_size": number(0),
    "data.test_size": number(0),
    "data.split_seed": whole(0),
    "data.data_seed": whole(0),
    "data.max_train_images": whole(1) | NULL,
    "data.batch_size": whole(1),
    "data.eval_batch_size": whole(1),
    "data.train_images": whole(1),
    "data.test_images": whole(1),
    "data.noise": number(0),
    "augment.*.p": number(0, 1),
    "augment.*.padding": whole(0),
    "augment.*.num_ops": whole(1),
    "augment.*.magnitude": whole(0, 30),
    "optimizer.lr": number(0, above=True),
    "optimizer.weight_decay": number(0),
    "optimizer.momentum": SHARE,
    "optimizer.eps": number(0),
    "optimizer.betas": each(2, SHARE),
    "finetune.layer_decay": number(0, 1, above=True),
    "finetune.head_lr_multiplier": number(0, above=True),
    "finetune.freeze_epochs": whole(0) | Rule("all", lambda value: value == "all"),
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
    "trainer.num_nodes": whole(1),
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.gradient_clip_val": number(0) | NULL,
    "trainer.gradient_clip_algorithm": choice("norm", "value") | NULL,
    "trainer.limit_train_batches": LIMIT | NULL,
    "trainer.limit_val_batches": LIMIT | NULL,
    "trainer.limit_test_batches": LIMIT | NULL,
    "trainer.val_check_interval": INTERVAL | NULL,
    "trainer.check_val_every_n_epoch": whole(1) | NULL,
    "trainer.log_every_n_steps": whole(1),
    "callbacks.*.patience": whole(0),
    "callbacks.*.mode": choice("min", "max"),
    "callbacks.*.refresh_seconds": number(0),
}
# Of vitlab's own networks; another's arguments of the same names may mean something else.
NETWORK_RULES: Mapping[str, Rule] = {
    "model.patch_size": SIDES,
    "model.in_channels": whole(1),
    "model.embed_dim": whole(1),
    "model.depth": whole(1),
    "model.num_heads": whole(1),
    "model.mlp_ratio": number(0, above=True),
    "model.dropout": SHARE | NULL,
    "model.attention_dropout": SHARE,
    "model.drop_path": SHARE | NULL,
    "model.pool": choice("cls", "mean"),
    "model.pos_embed": choice("learned", "sincos2d", "none"),
    "model.activation": choice("gelu", "relu"),
    "model.head_hidden_dim": whole(1) | NULL,
}


def rule_for(path: str, network: str) -> Rule | None:
    """The rule of a value by its path; `network` is the target of the `model` group."""
    tables = (RULES, NETWORK_RULES) if network.startswith("vitlab.") else (RULES,)
    for rules in tables:
        for pattern, rule in rules.items():
            if fnmatchcase(path, pattern) and path.count(".") == pattern.count("."):
                return rule
    return None
