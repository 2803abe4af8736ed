"""Draw what a ViT attends to in images."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from vitlab.arguments.command import read_command
from vitlab.cli import run
from vitlab.errors import UserError, did_you_mean
from vitlab.files import folder_for, shorten
from vitlab.predict import check_all_read, check_top_k, find_images
from vitlab.runs.imports import fast_imports

if TYPE_CHECKING:
    from PIL import Image

    from vitlab.loaded_model import LoadedModel
    from vitlab.plots.vit_plots import Explanation

SIDE = 448  # largest side of the drawn image, in pixels


def main() -> None:
    explain(*read_command("explain", sys.argv[1:]))


def explain(command: DictConfig, overrides: Sequence[Override]) -> list[Path]:
    """Write a figure for each image into a folder that has none of them, and return the files.

    `command` holds the values of `conf/explain.yaml`, `overrides` those of the run's config. Raises UserError if one of
    them is wrong, if the model has no attention to draw or, after all others are done, for images that can't be read.
    """
    check_top_k(command.top_k)
    with fast_imports():  # torch is imported once the command is known to be right
        from vitlab.data.decoding import describe_failure, read_image
        from vitlab.loaded_model import open_model
        from vitlab.plots.grid import shorten_name
        from vitlab.plots.io import FigureText, render, save
        from vitlab.plots.vit_plots import EXPLANATION_CAPTION, draw_explanation
        from vitlab.runs.console import show

    model = open_model(command, overrides)
    explainer = Explainer(model, None if command.target is None else str(command.target), command.top_k)
    files, failures = find_images(command.images)
    names = _figure_names(files)
    base = command.out or f"outputs/figures/explain_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    folder: Path | None = None
    written: list[Path] = []
    for path in files:
        try:
            image = read_image(path)
        except Exception as error:  # Pillow's decoders raise anything
            failures[str(path)] = describe_failure(error)
            continue
        folder = folder or folder_for(Path(str(base)), *names.values())
        explanation = explainer.explain(image)
        written.append(folder / names[path])
        text = FigureText("explain", f"Attention of the model to {shorten_name(path.name, 80)}", EXPLANATION_CAPTION)
        save(render(partial(draw_explanation, explanation), text.title), written[-1], text)
        show(f"{path}  {explanation.summary}  written: {shorten(written[-1])}")
    check_all_read(failures, len(written), command.images)
    return written


class Explainer:
    """Explains predictions of a ViT: of a class, or without `target` of the predicted one.

    Raises:
        UserError: the model has no such class, or no attention to draw.
    """

    def __init__(self, model: LoadedModel, target: str | None, top_k: int) -> None:
        import torch

        from vitlab.models.interpretation import record_attention

        if target not in (None, *model.classes):
            hint = did_you_mean(str(target), set(model.classes))
            raise UserError(f"target={target} is none of the run's classes{hint}")
        self.model, self.target, self.top_k = model, target, top_k
        self.side = model.config.data.stored_size
        self.network = copy.deepcopy(model.network).float().eval()
        blank = torch.zeros(1, 3, self.side, self.side, dtype=torch.uint8)
        if record_attention(self.network, model.preprocess(blank)) is None:
            raise UserError(
                f"the run's {type(model.network).__name__} has no attention among all patches of an image, or pools "
                "them in another way than by a mean: explain works for plain ViTs, like model=vit_scratch and most of "
                "timm's vit_*, deit* and eva*"
            )

    def explain(self, image: Image.Image) -> Explanation:
        """The maps of an image of any size, as `read_image` returns it."""
        import torch

        from vitlab.data.decoding import to_square
        from vitlab.metrics.evaluation import rank_classes
        from vitlab.models import interpretation
        from vitlab.plots.vit_plots import Explanation

        model = self.model
        pixels = torch.from_numpy(to_square(image, self.side)).unsqueeze(0)
        logits = model.logits(pixels)
        ranked = rank_classes(logits)[0].tolist()
        explained = ranked[0] if self.target is None else model.classes.index(self.target)
        shown = dict.fromkeys([*ranked[: self.top_k], explained])
        probabilities = logits.softmax(dim=1)[0]

        classes = torch.tensor([explained], device=model.device)
        found = interpretation.attention_gradients(self.network, model.preprocess(pixels), classes)
        assert found is not None
        attention, gradients = found
        flow = interpretation.rollout(attention.weights)
        relevance = interpretation.gradient_rollout(attention.weights, gradients)
        return Explanation(
            image=torch.from_numpy(to_square(image, min(*image.size, SIDE))),
            probabilities={model.classes[label]: float(probabilities[label]) for label in shown},
            explained=model.classes[explained],
            rollout=interpretation.seen_by_head(flow, attention)[0].cpu(),
            relevance=interpretation.seen_by_head(relevance, attention)[0].cpu(),
            heads=interpretation.last_layer(attention)[0].cpu(),
        )


def _figure_names(files: Sequence[Path]) -> dict[Path, str]:
    """A different file name for each image's figure."""
    names: dict[str, Path] = {}
    for path in files:
        candidates = chain([path.stem], (f"{path.stem}_{number}" for number in count(2)))
        names[next(name for name in candidates if name not in names)] = path
    return {path: f"{name}.png" for name, path in names.items()}


if __name__ == "__main__":
    run(main)
