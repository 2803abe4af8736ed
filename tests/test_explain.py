import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run, tmp_path / "outputs" / "demo" / "a"))


def picture(file: Path, size: tuple[int, int] = (60, 40)) -> Path:
    file.parent.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
    return file


def test_each_image_gets_a_figure(run: Path, in_process: Command, tmp_path: Path) -> None:
    for name in ("x$^$y.jpg", "x$^$y.png", "tiny.bmp"):
        picture(tmp_path / "photos" / name, (3, 5) if name == "tiny.bmp" else (60, 40))
    result = in_process("-m", "vitlab.explain", "run=latest", "images=photos", "target=ring")
    assert result.returncode == 0, result.stderr
    files = [Path(match) for match in re.findall(r"written: (.+)", result.stdout)]
    assert [file.name for file in files] == ["tiny.png", "x$^$y.png", "x$^$y_2.png"]
    assert all(str(file).startswith("outputs/figures/explain_") for file in files)
    for file in files:
        with Image.open(tmp_path / file) as figure:
            assert figure.width > 1000
            assert len(figure.getcolors(1 << 24) or []) > 500
            assert "Rollout" in str(figure.info["Description"])
    assert len(re.findall(r"ring [\d.]+%", result.stdout)) == 3


def test_probabilities_equal_those_of_predict_and_nothing_is_overwritten(
    run: Path, in_process: Command, tmp_path: Path
) -> None:
    picture(tmp_path / "one.png")
    said = in_process("predict.py", "run=latest", "images=one.png", "top_k=1", "grid=0").stdout
    checkpoint, predicted = said.splitlines()[:2]
    for folder in ("here", "here_2"):
        result = in_process("-m", "vitlab.explain", "run=latest", "images=one.png", "out=here")
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"{checkpoint}\n{predicted}  written: {folder}/one.png\n"


def test_a_model_without_attention_is_refused(in_process: Command, tmp_path: Path, image_root: Path) -> None:
    choices = ["data=image_folder", f"data.root={image_root}", "data.batch_size=8", "trainer.max_epochs=1"]
    network = ["model=vit_pretrained", "model.name=test_resnet", "model.pretrained=false", "preflight=off"]
    facts = ["data.image_size=32", "data.interpolation=bicubic"]
    figures = ["callbacks.figures=null", "callbacks.features=null", "callbacks.vit_figures.level=light"]
    result = in_process("train.py", *choices, *network, *facts, *figures)
    assert result.returncode == 0, result.stderr
    assert "left out" not in result.stdout + result.stderr
    assert not list(tmp_path.glob("outputs/*/*/figures/4*.png"))
    result = in_process("-m", "vitlab.explain", "run=latest", f"images={picture(tmp_path / 'one.png')}")
    assert result.returncode == 2
    assert "error: the run's ResNet has no attention among all patches of an image" in result.stderr
    assert not (tmp_path / "outputs" / "figures").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["run=latest", "images=one.png", "target=rink"],
            "target=rink is none of the run's classes.",
        ),
        (["run=latest", "images=one.png", "target=rink"], "Did you mean 'ring'?"),
        (["run=latest", "images=[one.png,nothing.png]"], "1 of 2 images could not be read:\n  nothing.png: no such"),
        (["run=latest"], "images must be given"),
        (["images=one.png"], "which model? give run=<run directory>, run=latest, or checkpoint=<file>"),
        (["run=latest", "images=one.png", "top_k=0"], "top_k=0 must be at least 1"),
        (["run=latest", "images=one.png", "tarket=ring"], "unknown key 'tarket'. Did you mean 'target'?"),
    ],
)
def test_wrong_input_gets_a_sentence(
    run: Path, arguments: list[str], sentence: str, in_process: Command, tmp_path: Path
) -> None:
    picture(tmp_path / "one.png")
    result = in_process("-m", "vitlab.explain", *arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
