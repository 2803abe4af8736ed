"""Train models and use trained ones from Python."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO, IOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from omegaconf import OmegaConf

from vitlab.arguments.command import parse_overrides, read_command, training_arguments
from vitlab.arguments.entry_points import pretend_script
from vitlab.arguments.literals import as_arguments
from vitlab.config.compose import NOT_COMPOSED, explain, typed_overrides
from vitlab.config.instantiate import targets
from vitlab.distributed.process import check_start
from vitlab.errors import TerminatedError, UserError
from vitlab.files import expand_home, shorten
from vitlab.runs.console import log_to
from vitlab.runs.directory import RunDirectory, run_around
from vitlab.runs.isolation import restored_libraries, restored_process
from vitlab.runs.run_guard import begin_hydra_run

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from PIL import Image
    from torch import Tensor, nn

    from vitlab.loaded_model import LoadedModel


@dataclass(frozen=True, repr=False)
class Prediction:
    """The classes of one image."""

    probabilities: dict[str, float]  # of every class, from 0 to 1, highest first
    file: Path | None = None  # None for an image that was not read from a file

    @property
    def label(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """The probability of `label`, from 0 to 1."""
        return self.probabilities[self.label]

    def __repr__(self) -> str:
        top = ", ".join(f"{name} {value:.1%}" for name, value in list(self.probabilities.items())[:3])
        return f"<{f'{self.file}: ' if self.file else ''}{top}>"


class Model:
    """A trained model, ready for images of any size.

    `images` of its methods are one image, or a list, of: a path of a file, a folder (with its subfolders) or a pattern
    such as `photos/*.jpg`; a Pillow image; a NumPy array `[H, W, C]`; a tensor `[C, H, W]`. Arrays and tensors are
    uint8, or floating point from 0 to 1, of 1, 3 or 4 channels; of four dimensions, they are a batch. Resizing and
    normalisation are the model's own. UserError if an image can't be read; in a folder or for a pattern, such images
    are left out with a warning.

    Attributes:
        network: The `nn.Module` in eval mode on its device: normalised images `[B, 3, image_size, image_size]` ->
            logits `[B, classes]`.
        classes: Names of the classes, in the order of the logits.
        config: The config of the run; read-only.
        checkpoint: The file that the weights are from.
        run: The run directory; None if the checkpoint was opened without its run.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self.network: nn.Module = loaded.network
        self.classes: list[str] = loaded.classes
        self.config: DictConfig = loaded.config
        self.checkpoint: Path = loaded.checkpoint
        self.run: Path | None = loaded.run.path if loaded.run else None

    def __repr__(self) -> str:
        loaded = self._loaded
        name = f"{type(self.network).__name__} with {len(self.classes)} classes on {loaded.device}"
        return f"<{name}: {loaded.weights} weights of {shorten(self.checkpoint)}>"

    @overload
    def predict(self, images: Image.Image, *, calibrate: bool = ...) -> Prediction: ...
    @overload
    def predict(self, images: Sequence[Any], *, calibrate: bool = ...) -> list[Prediction]: ...
    @overload
    def predict(self, images: Any, *, calibrate: bool = ...) -> Any: ...
    def predict(self, images: Any, *, calibrate: bool = False) -> Any:
        """The classes of images with their probabilities: a Prediction for one image, otherwise a list of them.

        With `calibrate`, the logits are divided by the temperature that `evaluate.py calibrate=true` has found.
        """
        from vitlab.metrics.evaluation import rank_classes
        from vitlab.runs.calibration import read_temperature

        loaded = self._loaded
        temperature = read_temperature(loaded.run, loaded.checkpoint, loaded.weights) if calibrate else 1.0
        sources, is_one = _list_images(images)
        predictions = []
        for files, pixels in self._read_batches(sources):
            with self._matmul_precision():
                logits = loaded.logits(pixels) / temperature
            ranked = rank_classes(logits)
            values = logits.softmax(dim=1).gather(1, ranked)
            for file, labels, row in zip(files, ranked.tolist(), values.tolist(), strict=True):
                names = [self.classes[label] for label in labels]
                predictions.append(Prediction(dict(zip(names, row, strict=True)), file))
        return predictions[0] if is_one else predictions

    def embed(self, images: Any) -> Tensor:
        """The features of images that the model's head reads: float32 `[B, D]`, on the CPU.

        UserError if the model has no layer that is its head.
        """
        import torch

        from vitlab.models.features import head_features

        found = []
        for _, pixels in self._read_batches(_list_images(images)[0]):
            with self._matmul_precision():
                found.append(head_features(self._loaded.forward, self._loaded.preprocess(pixels)).cpu())
        if not found:
            raise UserError("embed needs at least one image")
        return torch.cat(found)

    def explain(self, image: Any, target: str | None = None, top_k: int = 5) -> Image.Image:
        """A figure of what a ViT attends to in one image, as a Pillow image: a notebook shows it, `save` writes it.

        It draws the evidence for the predicted class, or for the class `target`, and lists the probabilities of
        `top_k` classes. UserError if the model has no attention among all patches, as a CNN.
        """
        from vitlab.explain import Explainer, check_top_k
        from vitlab.plots.grid import shorten_name
        from vitlab.plots.io import render
        from vitlab.plots.vit_plots import draw_explanation

        check_top_k(top_k)
        sources, is_one = _list_images(image)
        if not is_one:
            raise UserError("explain draws one image: call it for each")
        with self._matmul_precision():
            explanation = Explainer(self._loaded, target, top_k).explain(sources[0].read())
        name = f" to {shorten_name(sources[0].file.name, 80)}" if sources[0].file else ""
        return render(partial(draw_explanation, explanation), f"Attention of the model{name}")

    @contextmanager
    def _matmul_precision(self) -> Iterator[None]:
        """That of the run, which is torch's for the whole process."""
        import torch

        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.config.matmul_precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def _read_batches(self, sources: Sequence[_Source]) -> Iterator[tuple[list[Path | None], Tensor]]:
        """Files and uint8 pixels `[b, 3, stored_size, stored_size]`, decoded on all cores."""
        import torch

        from vitlab.data.decoding import decode_files

        data = self.config.data
        for start in range(0, len(sources), data.eval_batch_size):
            batch = sources[start : start + data.eval_batch_size]
            images = decode_files((source.file or source.read() for source in batch), data.stored_size)
            decoded = list(zip(batch, images, strict=True))
            failures = [(source, image.remark) for source, image in decoded if image.pixels is None]
            if named := [f"{source.file}: {reason}" for source, reason in failures if source.is_named]:
                raise UserError(f"can't read {'; '.join(named)}")
            for source, reason in failures:
                warnings.warn(f"left out {source.file}: {reason}", stacklevel=3)
            good = [(source.file, torch.from_numpy(i.pixels)) for source, i in decoded if i.pixels is not None]
            if good:
                yield [file for file, _ in good], torch.stack([image for _, image in good])


@dataclass(frozen=True)
class _Source:
    """An image that the user gave."""

    file: Path | None
    value: Any = None  # a Pillow image, array or tensor, if it is no file
    is_named: bool = True  # False: found in a folder, or by a pattern

    def read(self) -> Image.Image:
        from vitlab.data.decoding import describe_failure, read_image
        from vitlab.data.image_objects import as_rgb_image

        if self.file is None:
            return as_rgb_image(self.value)
        try:
            return read_image(self.file)
        except Exception as error:  # Pillow's decoders raise anything
            raise UserError(f"can't read {self.file}: {describe_failure(error)}") from error


def _list_images(images: Any) -> tuple[list[_Source], bool]:
    """The images that a person named in any way, and whether that is a single one."""
    from vitlab.data.image_objects import split_images
    from vitlab.predict import find_images

    if isinstance(images, str | os.PathLike):
        if not os.fspath(images):
            raise UserError("an empty text is no path of an image")  # Path("") is the working directory
        path = Path(expand_home(os.fspath(images)))
        if path.is_file():
            return [_Source(path)], True
        files, missing = find_images(path)
        if missing:
            raise UserError("; ".join(f"{name}: {reason}" for name, reason in missing.items()))
        return [_Source(file, is_named=False) for file in files], False
    if found := split_images(images):
        return [_Source(None, value) for value in found], getattr(images, "ndim", 0) != 4
    if isinstance(images, Iterable) and not isinstance(images, bytes | Mapping | IOBase):
        return [source for image in images for source in _list_images(image)[0]], False
    raise UserError(f"{type(images).__name__} is no image: expected paths, Pillow images, arrays or tensors")


def load(
    source: str | os.PathLike[str] = "latest",
    *overrides: str,
    checkpoint: str | os.PathLike[str] = "best",
    weights: str | None = None,
    outputs: str | os.PathLike[str] = "outputs",
    trusted_targets: Sequence[str] = (),
) -> Model:
    """Opens a trained model.

    Args:
        source: A run directory, its name below `outputs`, `latest` or `<folder of runs>/latest` for the newest finished
            run, a checkpoint file, a folder that `vitlab.export` wrote, or
            `hf-hub:<user>/<name>` on the Hugging Face hub.
        *overrides: Changes of the run's config as on the command line, such as `"trainer=cpu"`.
        checkpoint: Of a run: "best", "last" or a path.
        weights: For runs with `callbacks=ema`: "raw" or "ema"; None for those that epochs were selected by.
        outputs: The folder that `latest` and names are searched in.
        trusted_targets: Prefixes of your own classes that the run's config may name: `["mypackage."]`.

    Raises:
        UserError: there is no such run, its files are damaged, or an override is wrong; the message is one sentence.
    """
    path = Path(expand_home(os.fspath(source)))
    is_bare = path.is_file() and run_around(path) is None
    command = {
        "run": None if is_bare else str(path),
        "checkpoint": str(path if is_bare else checkpoint),
        "weights": weights,
        "outputs": str(outputs),
        "trusted_targets": [trusted_targets] if isinstance(trusted_targets, str) else list(trusted_targets),
    }
    try:
        with restored_process(), restored_libraries():
            from vitlab.loaded_model import open_model

            return Model(open_model(OmegaConf.create(command), parse_overrides(overrides), quiet=True))
    except NOT_COMPOSED as error:
        raise UserError(explain(error)) from error


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """A run that `train` has finished."""

    run: Path  # its directory
    metrics: dict[str, float]  # as in metrics.json: fractions, nats, seconds; empty with preflight=only

    def __repr__(self) -> str:
        found = (f"{name} {self.metrics[name]:.2%}" for name in ("val/acc", "test/acc") if name in self.metrics)
        return f"<run {', '.join([shorten(self.run), *found])}>"

    @cached_property
    def model(self) -> Model:
        """The model with the weights of the best epoch."""
        return load(self.run, trusted_targets=list(targets(OmegaConf.to_container(self._directory.config()))))

    @property
    def epochs(self) -> list[dict[str, float]]:
        """The metrics of each epoch, as in metrics.csv: `pandas.DataFrame(result.epochs)`."""
        return self._directory.epoch_rows()

    @property
    def figures(self) -> dict[str, Image.Image]:
        """The figures of the run by their names, such as "test/confusion"; a notebook shows them."""
        from PIL import Image

        from vitlab.plots.io import read_figures

        files = {figure.tag: figure.file for figure in read_figures(self.run)}
        return {tag: Image.open(BytesIO(file.read_bytes())) for tag, file in files.items()}  # no file stays open

    @property
    def _directory(self) -> RunDirectory:
        return RunDirectory(self.run)


def train(*overrides: str, config_dir: str | os.PathLike[str] | None = None, **settings: Any) -> TrainingResult:
    """Trains and tests a model, as `train.py` with the same overrides.

    `vitlab.train("model=vit_tiny", "trainer.max_epochs=5")`, `vitlab.train(model="vit_tiny", trainer={"max_epochs":
    5})` and `vitlab.train(**{"model": "vit_tiny", "trainer.max_epochs": 5})` are the same. `resume="latest"` resumes a
    run, `reproduce=` repeats one.

    Args:
        *overrides: Arguments of the command line, `key=value`.
        config_dir: A folder with your own choices, such as `model/mynet.yaml`.
        **settings: Overrides as Python values.

    Raises:
        UserError: an override or the data is wrong, or a check before training failed; one line for each mistake.
        KeyboardInterrupt: the run was interrupted, once `last.ckpt` is written; `resume="latest"` continues.
    """
    try:
        with restored_process():
            return TrainingResult(*_train([*overrides, *as_arguments(settings)], config_dir))
    except NOT_COMPOSED as error:
        raise UserError(explain(error)) from error
    except TerminatedError as error:  # the run is saved; now the signal does what it does in this program
        signal.raise_signal(signal.Signals(error.status - 128))
        raise


def _train(arguments: list[str], config_dir: str | os.PathLike[str] | None) -> tuple[Path, dict[str, float]]:
    for argument in arguments:
        if not isinstance(argument, str):
            kind = type(argument).__name__
            raise UserError(f"an override is text, 'key=value', not a {kind}: train(*overrides), or train(**settings)")
    given = {argument.partition("=")[0] for argument in arguments}
    arguments = training_arguments(arguments)
    if "sweep" in given or any(map(_is_several, arguments)):
        raise UserError("vitlab.train trains one model: for a sweep use the command line, vitlab train -m ...")
    pretend_script("train", *arguments)
    check_start(several=True)
    for verb in ("resume", "reproduce"):
        if verb in given:
            command, changes = read_command(verb, arguments)
            with restored_libraries():
                from vitlab import resume

                return getattr(resume, verb)(command, changes)
    choices = None if config_dir is None else Path(expand_home(os.fspath(config_dir)))
    if choices is not None and not choices.is_dir():
        raise UserError(f"config_dir={config_dir}: there is no such folder")
    folder, config, hydra = begin_hydra_run(arguments, choices)
    with restored_libraries():
        from vitlab import experiment

        log_to(folder, hydra.job_logging)
        return folder, experiment.train(config, typed_overrides(hydra))


def _is_several(argument: str) -> bool:
    return argument.startswith("-") or parse_overrides([argument])[0].is_sweep_override()
