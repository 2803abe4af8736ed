"""The notebook for Colab, Kaggle and Jupyter runs from top to bottom, and what else a notebook does works."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT, SMALL_RUN
from nbclient import NotebookClient

NOTEBOOK = ROOT / "tests" / "notebooks" / "quickstart.ipynb"
SHORT = ", ".join(map(repr, [*SMALL_RUN, "data.train_images=300", "data.test_images=50"]))
FIGURES = "'callbacks.figures.level=light', 'callbacks.vit_figures=null', 'callbacks.features=null'"
STOP = ["+callbacks.stop._target_=stoppers.SendSignal", "+callbacks.stop.number=2", "+callbacks.stop.epoch=1"]
STOP += ["+callbacks.stop.hook=on_train_batch_end", "+callbacks.stop.batch=1"]
FURTHER = [
    f"vitlab.train({SHORT}, *{STOP})",
    "vitlab.train('resume=latest', 'callbacks.stop=null', 'trusted_targets=[stoppers.]')",
    "vitlab.train('optimizer.lrr=1')",
    "vitlab.train('trainer=ddp_cpu', 'trainer.devices=2')",
    "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The cells of the notebook, and of what follows, after they were run with a small model."""
    book: Any = nbformat.read(NOTEBOOK, as_version=4)
    book.cells = [cell for cell in book.cells if cell.cell_type == "code" and "tags" not in cell.metadata]
    train = next(cell for cell in book.cells if "vitlab.train(" in cell.source)
    train.source = train.source.replace('"experiment=demo"', f"{SHORT}, {FIGURES}")
    book.cells += [nbformat.v4.new_code_cell(source) for source in FURTHER]
    folder = tmp_path_factory.mktemp("notebook")
    path = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    client = NotebookClient(book, timeout=300, allow_errors=True, resources={"metadata": {"path": str(folder)}})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in path.items():
            patch.setenv(name, value)
        patch.delenv("MPLBACKEND", raising=False)  # of a command that a test called in this process
        client.execute()
    return list(book.cells)


def outputs(cells: list[Any], source: str) -> list[Any]:
    (cell,) = [cell for cell in cells if source in cell.source]
    return list(cell.outputs)


def text(found: list[Any]) -> str:
    return "".join(output.get("text", "") for output in found)


def errors(found: list[Any]) -> list[str]:
    return [output.ename for output in found if output.output_type == "error"]


def kinds(found: list[Any]) -> set[str]:
    return {kind for output in found for kind in output.get("data", {})}


def test_the_notebook_trains_shows_and_explains(cells: list[Any]) -> None:
    book: Any = nbformat.read(NOTEBOOK, as_version=4)
    for cell in (cell for cell in book.cells if cell.cell_type == "code" and "tags" not in cell.metadata):
        assert errors(cell.outputs) == []  # as it is shown on the web
        assert cell.outputs or "import Image" in cell.source
    said = text(outputs(cells, "import vitlab"))
    assert said.count("run directory: outputs/demo/") == 2  # each line once
    assert said.count(" 2/2 ") == 1
    assert "test/acc" in outputs(cells, "import vitlab")[-1].data["text/plain"]
    assert "text/html" in kinds(outputs(cells, "import vitlab"))  # the progress bar
    assert "image/png" in kinds(outputs(cells, "result.figures"))
    assert "%" in outputs(cells, "model.predict(image)")[-1].data["text/plain"]
    assert "image/png" in kinds(outputs(cells, "model.explain"))


def test_an_interrupted_cell_is_resumed_by_the_next(cells: list[Any]) -> None:
    assert errors(outputs(cells, "callbacks.stop.number")) == ["KeyboardInterrupt"]
    assert errors(outputs(cells, "resume=latest")) == []
    assert text(outputs(cells, "resume=latest")).count(" 2/2 ") == 1


def test_mistakes_are_errors_of_the_cell_and_figures_of_ones_own_stay_inline(cells: list[Any]) -> None:
    (mistake,) = outputs(cells, "lrr")
    assert (mistake.ename, "Did you mean 'lr'?" in mistake.evalue) == ("UserError", True)
    (several,) = outputs(cells, "ddp_cpu")
    assert "trainer=ddp" in several.evalue
    assert "image/png" in kinds(outputs(cells, "plt.show()"))


def test_the_notebook_is_small() -> None:
    assert Path(NOTEBOOK).stat().st_size < 400_000
