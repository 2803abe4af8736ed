"""Values that are right each for itself and wrong together."""

from collections.abc import Callable, Iterator, Mapping
from math import log2
from typing import Any

from vitlab.config.ranges import METRICS
from vitlab.distributed.process import this_process

CIFAR10_TRAIN_IMAGES = 50_000  # Krizhevsky 2009, section 3.1
Config = Mapping[str, Any]


def cross_field_mistakes(config: Config) -> Iterator[tuple[str, str]]:
    """The path that a contradiction is best mended at, and a sentence for it.

    Args:
        config: Plain data in which every value by itself is in order; what is not, is left out.
    """
    for fact in FACTS:
        try:
            yield from fact(config)
        except (KeyError, TypeError):  # it needs a value that is missing or wrong, and named already
            continue


def _sizes(config: Config) -> Iterator[tuple[str, str]]:
    model = config["model"]
    if not model["_target_"].startswith("vitlab.models.VisionTransformer"):
        return
    images, patches = _pair(model["image_size"]), _pair(model["patch_size"])
    height, width = patches
    if model.get("stem") == "conv" and (height != width or height < 2 or height.bit_count() > 1):
        nearest = 2 ** max(round(log2(height)), 1)
        yield "model.patch_size", f"stem=conv halves the sides: patch_size must be 2, 4, 8 ...: take {nearest}"
        return
    for image, patch in zip(images, patches, strict=True):
        if image % patch:
            divisor = _nearest_divisor(image, patch)
            yield (
                "model.patch_size",
                f"image_size={image} is not a multiple of patch_size={patch}: take patch_size={divisor}",
            )
            return


def _widths(config: Config) -> Iterator[tuple[str, str]]:
    model = config["model"]
    if not model["_target_"].startswith("vitlab.models.VisionTransformer"):
        return
    width, heads = model["embed_dim"], model["num_heads"]
    if width % heads:
        yield (
            "model.num_heads",
            f"embed_dim={width} is not a multiple of num_heads={heads}: "
            f"embed_dim={max(round(width / heads), 1) * heads} or num_heads={_nearest_divisor(width, heads)} would do",
        )
    if width % 4 and model["pos_embed"] == "sincos2d":
        yield (
            "model.embed_dim",
            "pos_embed=sincos2d needs embed_dim to be a multiple of 4, "
            f"not {width}: take {max(round(width / 4), 1) * 4}",
        )


def _channels(config: Config) -> Iterator[tuple[str, str]]:
    if config["model"].get("in_channels", 3) != 3:
        yield "model.in_channels", f"in_channels={config['model']['in_channels']}, but the images have 3 channels"


def _classes(config: Config) -> Iterator[tuple[str, str]]:
    data = config["data"]
    if data["classes"] is not None and data["num_classes"] not in (None, len(data["classes"])):
        yield "data.num_classes", f"num_classes={data['num_classes']}, but data.classes names {len(data['classes'])}"


def _epochs(config: Config) -> Iterator[tuple[str, str]]:
    trainer, schedule = config["trainer"], config["scheduler"]["schedule"]
    endless = trainer["max_steps"] == -1 and trainer["max_epochs"] in (None, -1)
    if "progress" in schedule:
        if trainer["max_time"] is None:
            yield "trainer.max_time", "this schedule is laid over the run's time: set trainer.max_time=DD:HH:MM:SS"
        if not endless:
            yield (
                "trainer.max_epochs",
                "this schedule ends with trainer.max_time: set trainer.max_epochs=-1, max_steps=-1",
            )
        if schedule["warmup"] >= 1:
            yield "scheduler.schedule.warmup", f"warmup={schedule['warmup']:g} must be a fraction of trainer.max_time"
    elif endless and "total_steps" in schedule:
        yield "trainer.max_epochs", "this schedule must know the run's length: set trainer.max_epochs or max_steps"
    elif endless and trainer["max_time"] is None:
        yield "trainer.max_epochs", "the run would never end: set trainer.max_epochs, max_steps or max_time"


def _warmup(config: Config) -> Iterator[tuple[str, str]]:
    schedule, trainer = config["scheduler"]["schedule"], config["trainer"]
    warmup, total = schedule["warmup"], _total_steps(config)
    if config["scheduler"]["interval"] == "epoch":
        total = trainer["max_epochs"] if trainer["max_epochs"] not in (None, -1) else None
    if total is not None and warmup >= 1 and int(warmup) >= total:
        yield (
            "scheduler.schedule.warmup",
            f"warmup={warmup:g} takes {int(warmup)} of the run's {total} steps: "
            "take fewer, or a fraction of the run (0.05)",
        )


def _mixing_that_ends(config: Config) -> Iterator[tuple[str, str]]:
    trainer = config["trainer"]
    for name, node in config["augment"].items():
        off = node.get("off_share") if isinstance(node, dict) else None
        if off and trainer["max_epochs"] in (None, -1) and trainer["max_time"] is None:
            yield (
                f"augment.{name}.off_share",
                f"off_share={off:g} counts from the run's end: set trainer.max_epochs or max_time, or off_share=0",
            )


def _images(config: Config) -> Iterator[tuple[str, str]]:
    data = config["data"]
    available = _train_images(data)
    if available is None:
        return
    left = available - _held_out(data, available)
    if left < 1:
        yield "data.val_size", f"val_size={data['val_size']} leaves none of the {available} images to train on"
        return
    left = min(left, data["max_train_images"] or left)
    if data["batch_size"] > left:
        yield "data.batch_size", f"batch_size={data['batch_size']} is more than the {left} training images"


def _devices(config: Config) -> Iterator[tuple[str, str]]:
    devices, nodes, batch = (
        config["trainer"]["devices"],
        config["trainer"]["num_nodes"],
        config["data"]["batch_size"],
    )
    me = this_process()
    for key, value, there in (("devices", devices, me.ranks // me.nodes), ("num_nodes", nodes, me.nodes)):
        counted = len(value) if isinstance(value, list) else value
        if me.has_peers and counted not in ("auto", -1, there):
            what = f"{there} processes on each machine" if key == "devices" else f"processes on {there} machines"
            yield f"trainer.{key}", f"{key}={value}, but {me.started_by} started {what}: leave it out, or take {there}"
            return
    count = len(devices) if isinstance(devices, list) else devices
    ranks = me.ranks if me.has_peers else count
    if isinstance(ranks, int) and ranks > 0 and batch % ranks:
        near = max(round(batch / ranks), 1) * ranks
        yield "data.batch_size", f"batch_size={batch} does not divide among {ranks} devices: take {near}"


def _sharding(config: Config) -> Iterator[tuple[str, str]]:
    strategy = config["trainer"]["strategy"]
    if not isinstance(strategy, dict) or strategy["_target_"] != "vitlab.distributed.strategies.FullySharded":
        return
    for name, callback in config["callbacks"].items():
        if isinstance(callback, dict) and callback["_target_"] == "vitlab.callbacks.EMA":
            yield (
                f"callbacks.{name}",
                "trainer=fsdp keeps no average of a sharded model: take trainer=ddp",
            )
    if config["optimizer"]["_target_"] == "vitlab.optim.Muon":
        yield (
            "optimizer",
            "Muon needs whole matrices, and trainer=fsdp divides them: take optimizer=adamw",
        )


def _precision(config: Config) -> Iterator[tuple[str, str]]:
    trainer = config["trainer"]
    if trainer["accelerator"] == "cpu" and str(trainer["precision"]) in ("16", "16-true", "16-mixed"):
        yield (
            "trainer.precision",
            f"precision={trainer['precision']}: a CPU does not train in float16; take auto, bf16-mixed or 32-true",
        )


def _waiting_for_validation(config: Config) -> Iterator[tuple[str, str]]:
    data, trainer = config["data"], config["trainer"]
    if data["val_size"] != 0 and trainer["limit_val_batches"] != 0:
        return
    off = "data.val_size=0" if data["val_size"] == 0 else "trainer.limit_val_batches=0"
    for path, monitor, _ in _monitors(config):
        if path != "checkpoint" and monitor.startswith("val/"):  # without validation the last state is kept
            yield f"{path}.monitor", f"{path} follows {monitor}, but {off} leaves no validation"


def _averages(config: Config) -> Iterator[tuple[str, str]]:
    averaged = any(node and node["_target_"] == "vitlab.callbacks.EMA" for node in config["callbacks"].values())
    for path, monitor, _ in _monitors(config):
        if monitor.endswith("_ema") and not averaged:
            yield f"{path}.monitor", f"{path} follows {monitor}, which callbacks=ema measures: add that"


def _modes(config: Config) -> Iterator[tuple[str, str]]:
    for path, monitor, mode in _monitors(config):
        if mode is not None and mode != METRICS[monitor]:
            kept = "worst" if path == "checkpoint" else "wrong"
            place = "scheduler.schedule" if path == "scheduler" else path
            yield f"{place}.mode", f"mode={mode} of {monitor} would take the {kept} epoch: take mode={METRICS[monitor]}"


def _plateau(config: Config) -> Iterator[tuple[str, str]]:
    scheduler = config["scheduler"]
    if not scheduler["schedule"]["_target_"].endswith(".ReduceLROnPlateau"):
        return
    if scheduler["monitor"] is None:
        yield "scheduler.monitor", "ReduceLROnPlateau needs scheduler.monitor: val/acc or val/loss"
    if scheduler["interval"] != "epoch":
        yield "scheduler.interval", "ReduceLROnPlateau moves when there is a validation: take interval=epoch"


FACTS: tuple[Callable[[Config], Iterator[tuple[str, str]]], ...] = (
    _sizes,
    _widths,
    _channels,
    _classes,
    _epochs,
    _warmup,
    _mixing_that_ends,
    _images,
    _devices,
    _sharding,
    _precision,
    _waiting_for_validation,
    _averages,
    _modes,
    _plateau,
)


def _monitors(config: Config) -> Iterator[tuple[str, str, str | None]]:
    """Path, metric and mode of each that follows a metric."""
    checkpoint, scheduler = config["checkpoint"], config["scheduler"]
    yield "checkpoint", checkpoint["monitor"], checkpoint["mode"]
    if scheduler["monitor"] is not None:
        yield "scheduler", scheduler["monitor"], scheduler["schedule"].get("mode")
    for name, callback in config["callbacks"].items():
        if isinstance(callback, dict) and callback.get("monitor") is not None:
            yield f"callbacks.{name}", callback["monitor"], callback.get("mode")


def _train_images(data: Mapping[str, Any]) -> int | None:
    """Images there are to train and validate on, where that is known before they are read."""
    if data["_target_"] == "vitlab.data.SyntheticDataModule":
        return int(data["train_images"])
    official = data["_target_"] == "vitlab.data.CIFAR10DataModule" and "cs.toronto.edu" in data["url"]
    return CIFAR10_TRAIN_IMAGES if official else None


def _held_out(data: Mapping[str, Any], available: int) -> int:
    return round(data["val_size"] * available) if data["val_size"] < 1 else int(data["val_size"])


def _total_steps(config: Config) -> int | None:
    """Optimizer steps of the run, where that is known before the images are read."""
    trainer, data = config["trainer"], config["data"]
    if trainer["max_steps"] != -1:
        return int(trainer["max_steps"])
    available = _train_images(data)
    if available is None or trainer["limit_train_batches"] is not None or trainer["max_epochs"] in (None, -1):
        return None
    images = min(available - _held_out(data, available), data["max_train_images"] or available)
    batches = images // data["batch_size"]
    return -(-batches // trainer["accumulate_grad_batches"]) * int(trainer["max_epochs"])


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _nearest_divisor(of: int, to: int) -> int:
    return min((n for n in range(1, of + 1) if of % n == 0), key=lambda n: abs(n - to))
