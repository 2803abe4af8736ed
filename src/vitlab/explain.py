"""Draw what a ViT attends to in images."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from vitlab.cli import no_gc_imports, run
from vitlab.config.compose import CONF, read_command
from vitlab.errors import UserError, did_you_mean
from vitlab.files import folder_for, shorten
from vitlab.predict import check_all_read, check_top_k, find_images, read_batches

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitlab.loaded_model import LoadedModel
    from vitlab.plots.explanation import Explanation

SIDE = 448  # largest side of the drawn image, in pixels


def main() -> None:
    explain(*read_command(CONF, "explain", sys.argv[1:]))


def explain(command: DictConfig, overrides: Sequence[Override]) -> list[Path]:
    """Write a figure for each image into a folder that has none of them.

    Args:
        command: The values of `conf/explain.yaml`.
        overrides: Of the run's config.

    Returns:
        The files of the figures.

    Raises:
        UserError: run, checkpoint, class or an override is wrong, or the model has no attention to draw; or, after all
            others are done, images could not be read.
    """
    check_top_k(command.top_k)
    with no_gc_imports():  # torch is imported once the command is known to be right
        import torch

        from vitlab.loaded_model import open_model
        from vitlab.models.attention_maps import record_attention
        from vitlab.plots.explanation import CAPTION, draw_explanation
        from vitlab.plots.io import FigureText, render, save
        from vitlab.runs.console import show

    model = open_model(command, overrides)
    target = None if command.target is None else _label(str(command.target), model.classes)
    network = copy.deepcopy(model.network).float().eval()
    side = model.config.data.stored_size
    if record_attention(network, model.preprocess(torch.zeros(1, 3, side, side, dtype=torch.uint8))) is None:
        raise UserError(
            f"the run's {type(network).__name__} has no attention among all patches of an image: explain works for "
            "plain ViTs, like model=vit_scratch and most of timm's vit_*, deit* and eva*"
        )
    files, failures = find_images(command.images)
    names = _figure_names(files)
    base = command.out or f"outputs/figures/explain_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    folder: Path | None = None
    written: list[Path] = []
    for (path,), image in read_batches(files, model.config.data, failures, batch_size=1):
        folder = folder or folder_for(Path(str(base)), *names.values())
        explanation = _explanation(model, network, path, image, target, command.top_k)
        written.append(folder / names[path])
        title = f"Attention of the model to {path.name}"
        figure = render(partial(draw_explanation, explanation), title)
        save(figure, written[-1], FigureText("explain", title, CAPTION))
        show(f"{path}  {explanation.summary}  written: {shorten(written[-1])}")
    check_all_read(failures, len(written), command.images)
    return written


def _label(target: str, classes: list[str]) -> int:
    if target not in classes:
        hint = did_you_mean(target, set(classes))
        raise UserError(f"target={target} is none of the run's classes, which are {', '.join(classes)}{hint}")
    return classes.index(target)


def _explanation(
    model: LoadedModel, network: nn.Module, path: Path, image: Tensor, target: int | None, top_k: int
) -> Explanation:
    import torch

    from vitlab.classifier import rank_classes
    from vitlab.data.decoding import read_image, to_square
    from vitlab.models.attention_maps import attention_gradients
    from vitlab.models.interpretation import gradient_rollout, last_layer, rollout, seen_by_head
    from vitlab.plots.explanation import Explanation

    logits = model.logits(image)
    ranked = rank_classes(logits)[0].tolist()
    explained = ranked[0] if target is None else target
    shown = ranked[:top_k] if explained in ranked[:top_k] else [*ranked[:top_k], explained]
    probabilities = logits.softmax(dim=1)[0]

    found = attention_gradients(network, model.preprocess(image), torch.tensor([explained], device=model.device))
    assert found is not None
    attention, gradients = found
    whole = read_image(path)
    return Explanation(
        image=torch.from_numpy(to_square(whole, min(*whole.size, SIDE))),
        probabilities={model.classes[label]: float(probabilities[label]) for label in shown},
        explained=model.classes[explained],
        rollout=seen_by_head(rollout(attention.weights), attention)[0].cpu(),
        relevance=seen_by_head(gradient_rollout(attention.weights, gradients), attention)[0].cpu(),
        heads=last_layer(attention)[0].cpu(),
    )


def _figure_names(files: Sequence[Path]) -> dict[Path, str]:
    """A different file name for each image's figure."""
    names: dict[Path, str] = {}
    for path in files:
        name, count = f"{path.stem}.png", 1
        while name in names.values():
            count += 1
            name = f"{path.stem}_{count}.png"
        names[path] = name
    return names


if __name__ == "__main__":
    run(main)
