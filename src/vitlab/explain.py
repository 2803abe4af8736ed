"""Draws what a run's ViT looks at in pictures."""

import copy
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from vitlab.classifier import rank_classes
from vitlab.cli import run
from vitlab.config.compose import CONF, read_command
from vitlab.data.decoding import read_image, to_square
from vitlab.errors import UserError, did_you_mean
from vitlab.files import folder_for, shorten
from vitlab.loaded_model import LoadedModel, open_model
from vitlab.models.attention_maps import attention_gradients, record_attention
from vitlab.models.interpretation import gradient_rollout, last_layer, rollout, seen_by_head
from vitlab.plots.explanation import CAPTION, Explanation, draw_explanation
from vitlab.plots.io import FigureText, render, save
from vitlab.predict import check_all_read, find_images, read_batches

SIDE = 448  # px of a picture as it is drawn, at most


def explain(command: DictConfig, overrides: Sequence[Override], conf: Path) -> list[Path]:
    """Writes a figure for each picture into a folder that has none of them.

    Args:
        command: The values of `conf/explain.yaml`.
        overrides: Of the run's config.
        conf: The folder of YAML files.

    Returns:
        The figures' files.

    Raises:
        UserError: run, checkpoint, class or an override is wrong, or the network has no attention to draw; or, when all
            else is done, pictures could not be read.
    """
    if command.top_k < 1:
        raise UserError(f"top_k={command.top_k} must be at least 1")
    model = open_model(command, overrides, conf)
    target = _label(command.target, model.classes)
    network = copy.deepcopy(model.network).float().eval()
    _check_has_attention(network, model)

    console = Console(soft_wrap=True, highlight=False)
    files, failures = find_images(command.images)
    names = _names(files)
    folder: Path | None = None
    written: list[Path] = []
    for (path,), images in read_batches(files, model.config.data.stored_size, 1, failures):
        folder = folder or _folder(command.out, list(names.values()))
        explanation = _explain(model, network, path, images, target, command.top_k)
        written.append(folder / names[path])
        title = f"What the network looks at in {path.name}"
        image = render(partial(draw_explanation, explanation), title)
        save(image, written[-1], FigureText("explain", title, CAPTION))
        console.print(f"{path}  {explanation.summary}  written: {shorten(written[-1])}", markup=False)
    check_all_read(failures, len(written), command.images)
    return written


def _label(target: object, classes: list[str]) -> int | None:
    if target is None:
        return None
    if str(target) not in classes:
        hint = did_you_mean(str(target), set(classes))
        raise UserError(f"target={target} is no class of the run's, which are {', '.join(classes)}{hint}")
    return classes.index(str(target))


def _check_has_attention(network: nn.Module, model: LoadedModel) -> None:
    side = model.config.data.stored_size
    if record_attention(network, model.preprocess(torch.zeros(1, 3, side, side, dtype=torch.uint8))) is None:
        raise UserError(
            f"the run's {type(network).__name__} has no attention among all patches of an image: explain draws that of "
            "plain ViTs, as model=vit_scratch and most of timm's vit_*, deit* and eva*"
        )


def _explain(
    model: LoadedModel, network: nn.Module, path: Path, images: Tensor, target: int | None, top_k: int
) -> Explanation:
    logits = model.logits(images)
    ranked = rank_classes(logits)[0].tolist()
    explained = ranked[0] if target is None else target
    shown = ranked[:top_k] if explained in ranked[:top_k] else [*ranked[:top_k], explained]
    probabilities = logits.softmax(dim=1)[0]

    found = attention_gradients(network, model.preprocess(images), torch.tensor([explained], device=model.device))
    assert found is not None
    attention, gradients = found
    picture = read_image(path)
    return Explanation(
        image=torch.from_numpy(to_square(picture, min(*picture.size, SIDE))),
        probabilities={model.classes[label]: float(probabilities[label]) for label in shown},
        explained=model.classes[explained],
        rollout=seen_by_head(rollout(attention.weights), attention)[0].cpu(),
        relevance=seen_by_head(gradient_rollout(attention.weights, gradients), attention)[0].cpu(),
        heads=last_layer(attention)[0].cpu(),
    )


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """A file name for each picture's figure, none twice."""
    names: dict[Path, str] = {}
    for path in files:
        name, count = f"{path.stem}.png", 1
        while name in names.values():
            count += 1
            name = f"{path.stem}_{count}.png"
        names[path] = name
    return names


def _folder(out: object, names: Sequence[str]) -> Path:
    base = f"outputs/figures/explain_{time.strftime('%Y-%m-%d_%H-%M-%S')}" if out is None else str(out)
    return folder_for(Path(base), *names)


def main() -> None:
    command, overrides = read_command(CONF, "explain", sys.argv[1:])
    explain(command, overrides, CONF)


if __name__ == "__main__":
    run(main)
