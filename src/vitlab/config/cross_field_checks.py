"""Check values that are right on their own and wrong together."""

from collections.abc import Callable, Iterator, Mapping
from math import ceil, log2
from typing import Any

from vitlab.distributed.process import this_process
from vitlab.errors import nearest
from vitlab.metrics import CHOICES, logged_metrics, metric_kind, metric_name

VIT = "vitlab.models.VisionTransformer"
CIFAR10_TRAIN_IMAGES, CIFAR10_CLASSES = 50_000, 10  # Krizhevsky 2009, section 3.1
ENDLESS = (None, -1)  # values of trainer.max_epochs
Config = Mapping[str, Any]
Found = Iterator[tuple[str, str]]


def cross_field_mistakes(config: Config) -> Found:
    """Yield the path to correct and a sentence for each contradiction.

    Args:
        config: Plain data; values that are wrong on their own are left out.
    """
    for check in CHECKS:
        try:
            yield from check(config)
        except (KeyError, TypeError):  # a value that it needs is missing or wrong, which is reported already
            continue


def _widths(config: Config) -> Found:
    model = config["model"]
    if model["_target_"] != VIT:
        return
    width, heads = model["embed_dim"], model["num_heads"]
    if width % heads:
        widths, divisor = max(round(width / heads), 1) * heads, _nearest_divisor(width, heads)
        sentence = f"embed_dim={width} is not a multiple of num_heads={heads}"
        yield "model.num_heads", f"{sentence}: take embed_dim={widths} or num_heads={divisor}"
    if width % 4 and model["pos_embed"] == "sincos2d":
        near = max(round(width / 4), 1) * 4
        yield "model.embed_dim", f"pos_embed=sincos2d needs embed_dim to be a multiple of 4, not {width}: take {near}"
    if model["rotary"] and width % (4 * heads) and not width % heads:
        near = max(round(width / (4 * heads)), 1) * 4 * heads
        sentence = f"rotary=true needs embed_dim / num_heads to be a multiple of 4, not {width // heads}"
        yield "model.embed_dim", f"{sentence}: take embed_dim={near}"


def _patches(config: Config) -> Found:
    model = config["model"]
    if model["_target_"] != VIT:
        return
    height, width = _pair(model["patch_size"])
    if model["stem"] == "conv" and (height != width or height < 2 or height.bit_count() > 1):
        near = 2 ** max(round(log2(height)), 1)
        yield "model.patch_size", f"stem=conv halves the sides: patch_size must be 2, 4, 8 ...: take {near}"
        return
    for image, patch in zip(_pair(model["image_size"]), (height, width), strict=True):
        if image % patch:
            sentence = f"image_size={image} is not a multiple of patch_size={patch}"
            yield "model.patch_size", f"{sentence}: take patch_size={_nearest_divisor(image, patch)}"
            return


def _classes(config: Config) -> Found:
    data = config["data"]
    if data["classes"] is not None and data["num_classes"] not in (None, len(data["classes"])):
        yield "data.num_classes", f"num_classes={data['num_classes']}, but data.classes names {len(data['classes'])}"


def _run_length(config: Config) -> Found:
    trainer, schedule = config["trainer"], config["scheduler"]["schedule"]
    endless = trainer["max_steps"] == -1 and trainer["max_epochs"] in ENDLESS
    if "progress" in schedule:
        if trainer["max_time"] is None:
            yield "trainer.max_time", "this schedule follows the time budget: set trainer.max_time=DD:HH:MM:SS"
        is_trial = trainer["max_epochs"] == 1 and trainer["limit_train_batches"] is not None  # such as debug=fast
        if not endless and not is_trial:
            sentence = "this schedule ends with trainer.max_time: set trainer.max_epochs=-1, max_steps=-1"
            yield "trainer.max_epochs", sentence
        if schedule["warmup"] >= 1:
            sentence = f"warmup={schedule['warmup']:g} must be a fraction of trainer.max_time"
            yield "scheduler.schedule.warmup", sentence
    elif endless and "total_steps" in schedule:
        yield "trainer.max_epochs", "this schedule must know the run's length: set trainer.max_epochs or max_steps"
    elif endless and trainer["max_time"] is None:
        yield "trainer.max_epochs", "the run would never end: set trainer.max_epochs, max_steps or max_time"


def _warmup(config: Config) -> Found:
    warmup, epochs = config["scheduler"]["schedule"]["warmup"], config["trainer"]["max_epochs"]
    by_epoch = config["scheduler"]["interval"] == "epoch"
    total = (None if epochs in ENDLESS else epochs) if by_epoch else _total_steps(config)
    if total is not None and warmup >= 1 and int(warmup) >= total:
        sentence = f"warmup={warmup:g} takes {int(warmup)} of the run's {total} steps"
        yield "scheduler.schedule.warmup", f"{sentence}: take fewer, or a fraction of the run (0.05)"


def _images(config: Config) -> Found:
    data, left = config["data"], _train_images(config["data"])
    if data["folds"] is not None and data["fold"] >= data["folds"]:
        yield "data.fold", f"fold={data['fold']} of {data['folds']} folds: they are counted from 0"
    if data["folds"] is None and data["fold"]:
        yield "data.fold", f"fold={data['fold']} is of no use without folds: add data.folds=5"
    if data["folds"] is not None and not data["val_size"]:
        yield "data.folds", "val_size=0 turns off the validation that folds are for: leave it out"
    if left is not None and left < 1:
        yield "data.val_size", f"val_size={data['val_size']} leaves no image to train on"
    elif left is not None and data["batch_size"] > left:
        sentence = f"batch_size={data['batch_size']} is more than the {left} training images"
        yield "data.batch_size", f"{sentence}: take {2 ** (left.bit_length() - 1)}"


def _devices(config: Config) -> Found:
    trainer, batch, me = config["trainer"], config["data"]["batch_size"], this_process()
    devices = len(trainer["devices"]) if isinstance(trainer["devices"], list) else trainer["devices"]
    if me.launched_together:
        per_node = me.world_size // me.nodes
        for key, value, right, started in (
            ("devices", devices, per_node, f"{per_node} processes on each machine"),
            ("num_nodes", trainer["num_nodes"], me.nodes, f"processes on {me.nodes} machines"),
        ):
            if value not in ("auto", -1, right):
                sentence = f"{key}={trainer[key]}, but {me.started_by} started {started}"
                yield f"trainer.{key}", f"{sentence}: leave it out, or take {right}"
                return
    ranks = me.world_size if me.launched_together else devices
    if isinstance(ranks, int) and ranks > 0 and batch % ranks:
        near = max(round(batch / ranks), 1) * ranks
        yield "data.batch_size", f"batch_size={batch} does not divide among {ranks} devices: take {near}"


def _sharding(config: Config) -> Found:
    strategy = config["trainer"]["strategy"]
    if not isinstance(strategy, dict) or strategy["_target_"] != "vitlab.distributed.strategies.FullySharded":
        return
    for name, callback in config["callbacks"].items():
        if isinstance(callback, dict) and callback["_target_"] == "vitlab.callbacks.EMA":
            yield f"callbacks.{name}", "trainer=fsdp keeps no average of a sharded model: take trainer=ddp"
    if config["optimizer"]["_target_"] == "vitlab.optim.Muon":
        yield "optimizer", "Muon needs whole matrices, and trainer=fsdp divides them: take optimizer=adamw"


def _precision(config: Config) -> Found:
    if config["trainer"]["accelerator"] == "cpu" and config["trainer"]["precision"] == "16-mixed":
        yield "trainer.precision", "precision=16-mixed: a CPU does not train in float16; take auto"


def few_classes(config: Config) -> Found:
    """Monitored metrics that need more classes than there are, which may be known only once the images are read."""
    classes = config["data"]["num_classes"]
    for path, monitor, _, _ in _followers(config):
        kind = metric_kind(monitor)
        if kind and classes is not None and classes < kind.least_classes:
            sentence = f"{path} follows {monitor}, which needs {kind.least_classes} classes"
            yield f"{path}.monitor", f"{sentence}, not {classes}: take val/acc"


def _monitors(config: Config) -> Found:
    sizes = {"data.val_size": config["data"], "trainer.limit_val_batches": config["trainer"]}
    no_validation = [f"{key}=0" for key, node in sizes.items() if node.get(key.partition(".")[2]) == 0]
    averaged = any(node and node["_target_"] == "vitlab.callbacks.EMA" for node in config["callbacks"].values())
    known = logged_metrics(config["metrics"])
    names_of_own = [name for entry in config["metrics"] if isinstance(entry, dict) for name in entry]
    own = [f"val/{name}{suffix}" for suffix in ("", "_ema") for name in names_of_own]
    unknown = set()
    for path, monitor, place, node in _followers(config):
        mode = node.get("mode")
        if monitor not in known and monitor.startswith("val/") and metric_kind(monitor):
            name, chosen = metric_name(monitor), [n if isinstance(n, str) else "..." for n in config["metrics"]]
            can_be_added = name in CHOICES and monitor in logged_metrics([name])
            instead = f"add metrics=[{','.join([*chosen, name])}]" if can_be_added else "take val/acc"
            yield f"{path}.monitor", f"{path} follows {monitor}, which is not measured: {instead}"
        elif monitor not in known and mode is None and monitor not in unknown:
            unknown.add(monitor)
            sentence = f"vitlab itself logs {', '.join(known)}, not {monitor}{nearest(monitor, [*known, *own])}"
            if monitor in own:
                sentence = f"the better direction of {monitor} is not known"
            add = f"{'' if 'mode' in node else '+'}{place}.mode=max or min"
            yield f"{path}.monitor", f"{sentence} (for a metric of your own add {add})"
        if monitor in known and mode not in (None, known[monitor]):
            right = known[monitor]
            yield f"{place}.mode", f"mode={mode} of {monitor} would select the worst epoch: take mode={right}"
        if monitor in [*known, *own] and monitor.endswith("_ema") and not averaged:
            yield f"{path}.monitor", f"{path} follows {monitor}, which callbacks=ema measures: add that"
        if path != "checkpoint" and monitor.startswith("val/") and no_validation:  # without one, the last epoch is kept
            yield f"{path}.monitor", f"{path} follows {monitor}, but {no_validation[0]} leaves no validation"


def _plateau(config: Config) -> Found:
    scheduler = config["scheduler"]
    if scheduler["schedule"]["_target_"].endswith(".ReduceLROnPlateau"):
        if scheduler["monitor"] is None:
            yield "scheduler.monitor", "ReduceLROnPlateau needs scheduler.monitor: val/acc or val/loss"
        if scheduler["interval"] != "epoch":
            yield "scheduler.interval", "ReduceLROnPlateau acts after a validation: take interval=epoch"


def _class_weights(config: Config) -> Found:
    weights, data = config["loss"]["class_weights"], config["data"]
    classes = data["num_classes"]
    if isinstance(weights, list) and classes is not None and len(weights) != classes:
        yield "loss.class_weights", f"class_weights has {len(weights)} numbers: give {classes}, one for each class"
    if weights == "balanced" and data["sampling"] == "balanced":
        yield "loss.class_weights", "data.sampling=balanced lets all classes count equally already: take one of both"


CHECKS: tuple[Callable[[Config], Found], ...] = (
    *(_widths, _patches, _classes, _run_length, _warmup, _images, _devices, _sharding, _precision),
    *(_class_weights, few_classes, _monitors, _plateau),
)


def _followers(config: Config) -> Iterator[tuple[str, str, str, Config]]:
    """What follows a metric: its path, the metric, and the path and content of the node that may hold the `mode`."""
    checkpoint, scheduler = config["checkpoint"], config["scheduler"]
    if "monitor" in checkpoint:
        yield "checkpoint", checkpoint["monitor"], "checkpoint", checkpoint
    schedule = scheduler["schedule"]
    if scheduler.get("monitor") is not None and schedule["_target_"].endswith(".ReduceLROnPlateau"):
        yield "scheduler", scheduler["monitor"], "scheduler.schedule", schedule
    for name, node in config["callbacks"].items():
        is_lightnings = isinstance(node, dict) and node["_target_"].startswith("pytorch_lightning.callbacks.")
        if is_lightnings and isinstance(node.get("monitor"), str):
            yield f"callbacks.{name}", node["monitor"], f"callbacks.{name}", node


def _train_images(data: Config) -> int | None:
    """The number of images to train on, if it is known before they are read."""
    if data["_target_"] == "vitlab.data.SyntheticDataModule":
        available = int(data["train_images"])
    elif data["_target_"] == "vitlab.data.CIFAR10DataModule" and "cs.toronto.edu" in data["url"]:
        chosen = data["classes"] or range(CIFAR10_CLASSES)
        available = CIFAR10_TRAIN_IMAGES * len(chosen) // CIFAR10_CLASSES
    else:
        return None
    if data["folds"] is not None:
        available -= available // data["folds"]
        return min(available, data["max_train_images"] or available)
    left = available - round(data["val_size"] * (available if data["val_size"] < 1 else 1))
    return min(left, data["max_train_images"] or left)


def _total_steps(config: Config) -> int | None:
    """The run's optimizer steps, if they are known before the images are read."""
    trainer, images = config["trainer"], _train_images(config["data"])
    if trainer["max_steps"] != -1:
        return int(trainer["max_steps"])
    if images is None or trainer["limit_train_batches"] is not None or trainer["max_epochs"] in ENDLESS:
        return None
    batches = images // config["data"]["batch_size"]
    return ceil(batches / trainer["accumulate_grad_batches"]) * int(trainer["max_epochs"])


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _nearest_divisor(of: int, to: int) -> int:
    return min((n for n in range(1, of + 1) if of % n == 0), key=lambda n: abs(n - to))
