"""`vitlab <command>`, as it is installed from a wheel: without the clone, in any folder."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, SMALL_RUN, Command, Result, run_script
from test_fake_windows import COMMANDS as SEVERAL

from vitlab.cli import COMMANDS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with what the wheel holds; .ci/run builds and installs a real one."""
    folder = tmp_path_factory.mktemp("site")
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, folder / Path(package).name)
    for source, target in wheel["force-include"].items():
        (folder / target).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, folder / target)
    return folder


@pytest.fixture
def installed(site: Path, tmp_path: Path) -> Command:
    """Runs Python with the installed copy in an empty folder."""
    (tmp_path / "here").mkdir()
    path = {"PYTHONPATH": f"{site}:{ROOT / 'tests'}"}
    return lambda *arguments: run_script(*arguments, cwd=tmp_path / "here", env=path)


def console(in_process: Command, *arguments: str) -> Result:
    return in_process("-m", "vitlab", *arguments)


def test_every_command_has_a_page_that_calls_it_by_this_name(in_process: Command) -> None:
    page = console(in_process, "--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in page
        text = console(in_process, name, "--help").stdout
        assert f"vitlab {name}" in text
        assert not re.search(r"(?<!timm's )(train|evaluate|predict)\.py|python -m", text)
    assert console(in_process).stdout == console(in_process, "help").stdout == page
    assert re.fullmatch(r"vitlab \d+\.\d+.*\n", console(in_process, "--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "unknown command 'trian'. Did you mean 'train'?"),
        (["model=vit_tiny"], "vitlab train model=vit_tiny"),
        (["train", "optimizer.lrr=1"], "unknown key 'optimizer.lrr'"),
        (["train", "ckpt_path=x"], "vitlab evaluate run=<run> evaluates one"),
        (["predict", "run=latest"], "images must be given"),
        (["leaderboard"], "vitlab leaderboard outputs/sweeps/<time>"),
    ],
)
def test_a_mistake_gets_a_sentence_that_names_the_script(
    arguments: list[str], sentence: str, in_process: Command
) -> None:
    result = console(in_process, *arguments)
    assert result.returncode == 2
    assert sentence in result.stderr


def test_an_installed_copy_trains_and_evaluates_in_any_folder(installed: Command, site: Path, tmp_path: Path) -> None:
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "mine.yaml").write_text(
        "_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\nmomentum: 0.75\n"
    )
    commands = [
        ["vitlab", "train", *SMALL_RUN, "optimizer=mine", f"--config-dir={tmp_path / 'conf'}"],
        ["vitlab", "evaluate", "run=latest", "trainer=cpu"],  # the choice is in the installed conf/
    ]
    result = installed("-c", SEVERAL, json.dumps(commands))
    assert result.stdout.endswith("statuses [0, 0]\n"), result.stderr
    (run,) = (tmp_path / "here" / "outputs" / "demo").iterdir()
    assert f"\n  vitlab evaluate run=outputs/demo/{run.name}\n" in result.stdout
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["command"].startswith("vitlab train --config-dir=")
    assert manifest["git"]["revision"] is None  # not that of a clone around it
    page = (run / "report.html").read_text()
    assert "vitlab train reproduce=" in page
    assert " checkout " not in page.replace("from a git checkout", "")
    assert str(site) not in page
    assert json.loads((run / "evaluation_test.json").read_text())["test/acc"] == pytest.approx(
        json.loads((run / "metrics.json").read_text())["test/acc"]
    )


def test_modules_of_the_user_are_found_in_the_current_folder(site: Path, tmp_path: Path) -> None:
    (tmp_path / "mynet.py").write_text(
        "import torch\n\n\nclass MyNet(torch.nn.Sequential):\n    def __init__(self, num_classes):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * 32**2, num_classes))\n"
    )
    train = [choice for choice in SMALL_RUN if not choice.startswith("model.")]
    train += ["trainer.max_epochs=1", "model._target_=mynet.MyNet"]
    commands = [["vitlab", "train", *train], ["vitlab", "evaluate", "run=latest", "trusted_targets=[mynet.]"]]
    # As a script, without this folder in sys.path.
    path = {"PYTHONPATH": f"{site}", "PYTHONSAFEPATH": "1"}
    result = run_script("-c", SEVERAL, json.dumps(commands), cwd=tmp_path, env=path)
    assert result.stdout.endswith("statuses [0, 0]\n"), result.stderr


@pytest.mark.slow  # four processes import torch
def test_an_installed_copy_sweeps_and_ranks(installed: Command, tmp_path: Path) -> None:
    result = installed("-m", "vitlab", "train", "-m", *SMALL_RUN, "trainer.max_epochs=1", "preflight=off", "seed=0,1")
    assert result.returncode == 0, result.stderr
    assert "vitlab train reproduce=outputs/sweeps/" in result.stdout
    (sweep,) = (tmp_path / "here" / "outputs" / "sweeps").iterdir()
    manifest = json.loads((sweep / "1" / "manifest.json").read_text())
    assert manifest["command"].startswith("vitlab train experiment=demo")


@pytest.mark.slow  # two processes import torch
def test_the_ranks_of_a_run_start_from_the_installed_copy(installed: Command) -> None:
    devices = ["trainer=ddp_cpu", "trainer.devices=2"]
    result = installed("-m", "vitlab", "train", *SMALL_RUN, *devices, "trainer.max_epochs=1", "preflight=off")
    assert result.returncode == 0, result.stderr
    assert "2 x CPU" in result.stdout
