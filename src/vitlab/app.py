"""Try a model in the browser: drop an image, see its classes and attention."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from vitlab.arguments.command import check_switches, read_command
from vitlab.cli import run
from vitlab.errors import UserError, first_line, list_some
from vitlab.explain import Explainer
from vitlab.files import shorten
from vitlab.predict import check_top_k
from vitlab.runs.imports import fast_imports

if TYPE_CHECKING:
    from PIL import Image

    from vitlab.loaded_model import LoadedModel

LARGEST_PORT = 65_535
PREVIEW_SIDE = 1024  # largest side of the image on the page, in pixels
NAMED_CLASSES = 100  # in the note about the classes
FONT, MONOSPACE = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # gradio's own are on a server
STYLE = """
footer {display: none !important}
.uploaded img {width: 100%; height: 100%; object-fit: contain}
.examples img {image-rendering: pixelated}
.examples .grid-wrap {height: auto; min-height: 0}
.examples .grid-container {grid-template-columns: repeat(auto-fill, minmax(88px, 1fr))}
.facts :is(table, tr, td) {border: 0 !important}
.facts td {padding: 0.2em 1.5em 0.2em 0.5em; vertical-align: top; overflow-wrap: anywhere}
.facts td:first-child {white-space: nowrap}
"""


def main() -> None:
    app(*read_command("app", sys.argv[1:]))


def app(command: DictConfig, overrides: Sequence[Override]) -> None:
    """Serve the page until Ctrl-C.

    `command` holds the values of `conf/app.yaml`, `overrides` those of the run's config. UserError if one of them is
    wrong, the port is taken, or gradio is not installed.
    """
    check_top_k(command.top_k)
    if command.port is not None and not (isinstance(command.port, int) and 0 < command.port <= LARGEST_PORT):
        raise UserError(f"port={command.port} must be a whole number from 1 to {LARGEST_PORT}, or null for a free one")
    if not isinstance(command.examples, int) or command.examples < 0:
        raise UserError(f"examples={command.examples} must be a whole number of at least 0")
    check_switches(command, "calibrate", "share")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), "localhost,127.0.0.1")))
    with TemporaryDirectory() as uploads:  # no image is kept
        os.environ["GRADIO_TEMP_DIR"] = uploads
        with fast_imports():
            try:
                import gradio
            except ImportError as error:
                raise UserError(f'app needs the package {error.name}: pip install -e ".[app]"') from None

            from vitlab.loaded_model import open_model
            from vitlab.runs.console import show

        model = open_model(command, overrides)
        trial = Trial(model, command.top_k, command.calibrate)
        page = build_page(trial, describe(model), save_examples(model, command.examples, Path(uploads)))
        try:
            _, address, link = page.launch(
                server_name=str(command.host),
                server_port=command.port,
                share=command.share,
                theme=gradio.themes.Default(font=FONT, font_mono=MONOSPACE),
                css=STYLE,
                allowed_paths=[uploads],
                prevent_thread_lock=True,
                quiet=True,
                ssr_mode=False,
            )
        except OSError as error:
            taken = f"port={command.port} can't be used" if command.port else "no port from 7860 to 7959 is free"
            raise UserError(f"{taken} on host={command.host}: choose another with port=...") from error
        try:
            show(f"open {link or address} in a browser; Ctrl-C ends it")
            while True:
                time.sleep(1)
        finally:
            page.close(verbose=False)


class Trial:
    """A model that answers with the classes of an image file, and draws what it attends to.

    Args:
        top_k: Number of classes to draw.
        calibrate: Divides the logits by the temperature that `evaluate.py calibrate=true` has found.

    Raises:
        UserError: there is no such temperature.
    """

    def __init__(self, model: LoadedModel, top_k: int, calibrate: bool) -> None:
        from PIL import Image

        from vitlab.api import Model

        self.classes, self.top_k = model.classes, top_k
        self.predict = partial(Model(model).predict, calibrate=calibrate)
        self.predict(Image.new("RGB", (1, 1)))  # now, not with the first image
        try:
            self.explainer: Explainer | None = Explainer(model, None, top_k)
        except UserError:  # no ViT
            self.explainer = None

    def classify(self, file: Path, name: str) -> tuple[Image.Image, dict[str, float]]:
        """The image as it was read, and the probabilities of all classes; UserError that calls the file `name`."""
        from vitlab.data.decoding import describe_failure, read_image

        try:
            image = read_image(file)
        except Exception as error:  # Pillow's decoders raise anything
            raise UserError(f"{name} can't be read: {describe_failure(error)}") from error
        return image, self.predict(image).probabilities

    def attention(self, image: Image.Image, name: str) -> Image.Image | None:
        """The figure of `vitlab explain`; None if the model has no attention to draw."""
        from vitlab.plots.grid import shorten_name
        from vitlab.plots.io import render
        from vitlab.plots.vit_plots import draw_explanation

        if self.explainer is None:
            return None
        explanation = self.explainer.explain(image)
        return render(partial(draw_explanation, explanation), f"Attention of the model to {shorten_name(name, 80)}")


def build_page(trial: Trial, facts: tuple[str, list[tuple[str, str]]], examples: Sequence[tuple[str, str]]) -> Any:
    """The page, as gradio's Blocks: image, classes, attention, examples (file, class) and the facts of a model."""
    import gradio as gr

    def answer(file: Path, name: str) -> Iterator[tuple[Any, ...]]:
        try:
            image, probabilities = trial.classify(file, name)
        except UserError as error:
            yield None, None, None, f"<p role=alert><b>{escape(str(error), quote=False)}</b></p>"
            return
        preview = image.copy()
        preview.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        yield preview, probabilities, None, ""  # the attention takes longer
        yield preview, probabilities, trial.attention(image, name), ""

    # Without gradio's preprocessing, which opens images in its own way; it has checked that the path is an upload's.
    def classify(upload: dict[str, Any] | None) -> Iterator[tuple[Any, ...]]:
        if upload is None:
            yield None, None, None, ""
        else:
            yield from answer(Path(upload["path"]), upload.get("orig_name") or "the image")

    def classify_example(event: gr.SelectData) -> Iterator[tuple[Any, ...]]:
        file, name = examples[event.index]
        yield from answer(Path(file), f"a test image of the class {name}")

    classify_example.__annotations__["event"] = gr.SelectData  # gradio can't resolve the text of a local name

    title, rows = facts
    with gr.Blocks(title=f"{title} - vitlab", analytics_enabled=False) as page:
        gr.HTML(f"<h1>{escape(title)}</h1><p>{class_note(trial.classes)}</p>")
        with gr.Row():
            image = gr.Image(
                label="image", image_mode=None, height=320, min_width=280, buttons=[], elem_classes="uploaded"
            )
            label = gr.Label(label="classes", num_top_classes=trial.top_k, min_width=280)
        message = gr.HTML()
        if examples:
            gr.HTML("Or choose one of these images, which are named by their true classes:")
            gallery = gr.Gallery(
                list(examples),
                show_label=False,
                allow_preview=False,
                buttons=[],
                elem_classes="examples",
                height="auto",
            )
        has_attention = trial.explainer is not None
        attention = gr.Image(
            show_label=False, visible=has_attention, interactive=False, format="png", buttons=["fullscreen"]
        )
        cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
        gr.HTML(f"<table class=facts>{cells}</table>")
        shown = [image, label, attention, message]
        image.input(classify, image, shown, preprocess=False, api_name="classify")
        if examples:
            gallery.select(classify_example, None, shown, api_visibility="private")
    return page


def class_note(classes: Sequence[str]) -> str:
    """A sentence on what the model can answer, for a page in HTML."""
    named = escape(list_some(classes, NAMED_CLASSES))
    return f"The model knows {len(classes)} classes: {named}. It answers with one of them, whatever the image shows."


def describe(model: LoadedModel) -> tuple[str, list[tuple[str, str]]]:
    """The title of a model, and what there is to know about it."""
    from vitlab.report.run_summary import accuracy_interval, read_run_summary
    from vitlab.runs.hparams import data_set

    config, size = model.config, model.config.data.image_size
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    facts = {}
    if model.run is not None:
        summary = read_run_summary(model.run)
        suffix = "_ema" if model.weights == "ema" else ""
        accuracy = summary.final.get(f"test/acc{suffix}") if model.is_tested else None
        if accuracy is not None:
            images = summary.used("test")
            interval = accuracy_interval(accuracy, images)
            facts["test accuracy"] = f"{accuracy:.2%} (95% interval {interval}, {images:,} images)"
        facts["trained on"] = f"{data_set(config)}, {summary.images('train'):,} images"
        facts["status"] = f"{summary.manifest.get('status')}, {str(summary.manifest.get('finished'))[:10]}"
        facts["commit"] = str((summary.manifest.get("git") or {}).get("revision"))[:12]
    facts |= {
        "model": f"{config.model.get('name') or type(model.network).__name__}, {parameters:,} parameters",
        "images": f"resized to {size} x {size} px",
        "checkpoint": f"{shorten(model.checkpoint)}, {model.weights} weights",
        "device": f"{model.device}, precision {config.trainer.precision}",
    }
    return str(config.name), list(facts.items())


def save_examples(model: LoadedModel, count: int, folder: Path) -> list[tuple[str, str]]:
    """Files of `count` test images of a run, of different classes, with their classes; empty if it has none here."""
    from torchvision.transforms.functional import to_pil_image

    from vitlab.callbacks.vit_figures import choose_examples
    from vitlab.runs.console import show

    if not count or model.run is None:
        return []
    try:
        splits = model.load_data().splits
    except (UserError, OSError) as error:  # the data is on another computer
        show(f"no examples: {first_line(error)}")
        return []
    images = next((splits[split] for split in ("test", "val") if len(splits[split])), None)
    if images is None:
        return []
    chosen = images.take(choose_examples(images.labels, count))
    found = []
    for number, (pixels, label) in enumerate(zip(chosen.pick(slice(None)), chosen.labels.tolist(), strict=True)):
        file = folder / f"example_{number}.png"
        to_pil_image(pixels).save(file)
        found.append((str(file), model.classes[label]))
    return found


if __name__ == "__main__":
    run(main)
