"""Paths and names are taken as they are, whatever characters they have."""

import csv
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from omegaconf import OmegaConf
from PIL import Image

from vitlab.arguments.command import parse_overrides, read_command, training_arguments
from vitlab.arguments.hints import _places
from vitlab.arguments.literals import as_arguments, literal, quote
from vitlab.config.compose import compose_training
from vitlab.errors import UserError
from vitlab.files import CONF
from vitlab.predict import find_images
from vitlab.system import quote_for_shell

# Each character that a file name can have, at its start, in it and at its end; "${" alone would be a reference.
CHARACTERS = [chr(code) for code in range(1, 128) if chr(code) != "/"] + ["ß", "日", "e\u0301", "\udcff", "🙂"]
NAMES = [
    *(
        f"{before}{character}{after}"
        for character in CHARACTERS
        for before, after in (("a", "b"), ("", "b"), ("a", ""))
    ),
    *(
        "my photo [1] (2)",
        "größe 日本",
        "[a]",
        "{a: b}",
        "1e5",
        "2024",
        "true",
        "a=b",
        "a,b",
        "f(x)",
        "'x'",
        '"',
        "\\'",
    ),
    *("glob(*)", "choice(a,b)", "null ", "**", "--lr", "-m", "http://x/y?z=1&b", "..."),
]


@pytest.mark.parametrize("key", ["data.root", "name", "hydra.run.dir", "run", "out", "+x.save_dir", "init_from"])
def test_any_name_arrives_as_it_is(key: str) -> None:
    for name in NAMES:
        path = f"folder/{name}/x"  # as a whole it is no number, list or quoted text
        if "," not in name and "\\" not in name:  # several values, escapes of Hydra
            assert parse_overrides([f"{key}={path}"])[0].value() == path


def test_an_existing_file_is_meant_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        file = Path(name.replace("/", "_"))
        file.touch()
        assert parse_overrides([f"data.root={file}"])[0].value() == str(file)
        command, _ = read_command("predict", [f"images={file}", f"run={file}"])
        files, missing = find_images(command.images)
        assert (files, missing) == ([file], {}) or str(file).startswith("~")
        assert command.run == str(file)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("data.root=~/pics", "HOME/pics"),
        ("data.root='~/pics'", "HOME/pics"),
        ("run=~", "HOME"),
        ("images=~/a (1).png,b.png", ["HOME/a (1).png", "b.png"]),
        ("images=a.png,b.png", ["a.png", "b.png"]),
        ("images=[a.png, 'b.png']", ["a.png", "b.png"]),
        ("images=[a (1).png,b.png]", ["a (1).png", "b.png"]),
        ("images=photos/*.png", "photos/*.png"),
        ("data.classes=[ant (red),bee]", ["ant (red)", "bee"]),
        ("name=2024", "2024"),
        ("name=true", "true"),
        ("name=[a]", "[a]"),
        ("name=a${model.depth}", "a${model.depth}"),
        ("name=größe ${model.depth}", "größe ${model.depth}"),
        ("name='a b'", "a b"),
        ("notes=first try, larger lr", "first try, larger lr"),
        ("notes=null", None),
        ("run=null", None),
        ("model.depth=2024", 2024),
        ("model.drop_path=0.1", 0.1),
        ("data.url=http://x/y?z=1&b=(2)", "http://x/y?z=1&b=(2)"),
        ("data.mean=[1,2,3]", [1, 2, 3]),
        ("logger=null", "none"),
        ("augment=False", "none"),
        ("experiment=größe (1)", "größe (1)"),
        ("callbacks=[a,b]", ["a", "b"]),
    ],
)
def test_what_an_argument_means(argument: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "HOME")
    assert parse_overrides([argument])[0].value() == value
    assert literal(literal(argument)) == literal(argument)


def test_a_folder_of_configs_may_be_below_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "HOME")
    assert literal("--config-dir=~/a (1)") == "--config-dir=HOME/a (1)"
    assert literal("--config-dir") == "--config-dir"


def test_no_number_of_a_config_is_taken_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("0.1", "3", "true", "[1]"):
        Path(value).touch()
    names = {"cache_dir", "checkpoint", "classes", "init_from", "name", "project", "root", "run_name", "weights"}
    for name in set(_places()) - names:
        for value in ("0.1", "3", "true", "[1]"):
            if not (CONF / name).is_dir():
                assert literal(f"x.{name}={value}") == f"x.{name}={value}"


def test_values_of_a_sweep_are_quoted_one_by_one() -> None:
    (override,) = parse_overrides([literal("data.root=a (1),größe", sweep=True)])
    assert list(override.sweep_string_iterator()) == ["'a (1)'", "'größe'"]
    for argument in ("seed=0,1", "experiment=glob(*)", "name=choice(a,b)", "model=vit_tiny,vit_base"):
        assert literal(argument, sweep=True) == argument


def test_quotes_survive_hydra_and_omegaconf() -> None:
    for name in NAMES:
        (override,) = parse_overrides([f"name={quote(name)}"])
        assert OmegaConf.create({"name": override.value()}).name == name
    assert compose_training([f"name={quote('a (ß)')}", "run_dir=x"]).name == "a (ß)"


@pytest.mark.parametrize(
    ("arguments", "images"),
    [
        (["a.png", "b.png"], ["a.png", "b.png"]),
        (["images=a.png", "b.png"], ["a.png", "b.png"]),
        (["images=", "a.png", "c=d.png"], ["a.png", "c=d.png"]),
        (["images=[a.png]", "my photo (2).png", "top_k=1"], ["a.png", "my photo (2).png"]),
        (["photos/*.png"], ["photos/*.png"]),
    ],
)
def test_images_as_a_shell_gives_them(
    arguments: list[str], images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c=d.png").touch()
    command, overrides = read_command("predict", ["run=x", *arguments])
    assert (OmegaConf.to_container(command.images), overrides) == (images, [])


def test_a_text_stands_for_a_list_of_it() -> None:
    command, _ = read_command("evaluate", ["run=x", "trusted_targets=mypackage."])
    assert list(command.trusted_targets) == ["mypackage."]
    command, _ = read_command("leaderboard", ["tags=[2024,a]"])
    assert list(command.tags) == ["2024", "a"]
    command, _ = read_command("leaderboard", ["tags=null"])
    assert list(command.tags) == []


def test_a_pattern_in_a_folder_with_brackets(tmp_path: Path) -> None:
    folder = tmp_path / "my [1] photos*"
    folder.mkdir()
    for name in ("a.png", "b [2].png"):
        (folder / name).touch()
    assert find_images(f"{folder}/*.png") == ([folder / "a.png", folder / "b [2].png"], {})
    assert find_images(f"{folder}/[ab]*") == ([folder / "a.png", folder / "b [2].png"], {})


def test_a_printed_command_is_pasted_into_a_shell() -> None:
    words = " ".join(map(quote_for_shell, NAMES))
    assert words.isprintable()  # nothing that a terminal changes, like tabs
    result = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True)
    assert result.stdout.split(b"\0")[:-1] == [os.fsencode(name) for name in NAMES]


def test_images_of_any_name_are_classified(in_process: Command, small_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos [a]"
    folder.mkdir()
    names = [
        f"{name.replace('/', '_')[:50]}.png" for name in NAMES if not {"\udcff", "\r"} & {*name} and name[0] != "."
    ]
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name, format="png")
    result = in_process("predict.py", f"run={small_run}", str(folder), "out=out", "grid=4")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == {str(folder / name) for name in names}


def test_a_run_directory_that_is_not_utf_8_is_refused(in_process: Command) -> None:
    result = in_process("train.py", "data=synthetic", "hydra.run.dir=a\udcff")
    assert result.returncode == 2
    assert "hydra.run.dir" in result.stderr


def test_what_is_refused_is_given_as_the_line_to_type(in_process: Command) -> None:
    refused = in_process("train.py", "model.depth=[3 it's")
    assert refused.returncode == 2
    typed = shlex.split(refused.stderr.partition("type ")[2])
    assert parse_overrides(typed)[0].value() == "[3 it's"


def test_a_run_of_any_name_is_found_again(in_process: Command, tmp_path: Path) -> None:
    from conftest import SMALL_RUN

    name = "it's [a] (ß), ~{1}"
    quick = [*SMALL_RUN, "preflight=off", "trainer.max_epochs=1", f"hydra.run.dir={name}/a, 'b' ", f"name={name}"]
    assert in_process("train.py", *quick).returncode == 0
    (run,) = (file.parent for file in tmp_path.rglob("manifest.json"))
    printed = [line.strip() for line in (run / "run.log").read_text().splitlines() if "evaluate.py" in line]
    _, _, *typed = shlex.split(printed[0].partition(" python ")[2].join(["python ", ""]))
    evaluated = in_process("evaluate.py", *typed)
    assert evaluated.returncode == 0, evaluated.stderr
    assert os.fspath(run.relative_to(tmp_path)) in evaluated.stdout


WINDOWS_PATHS = [
    *(
        "outputs\\demo\\latest",
        "C:\\data\\cifar",
        "C:\\data\\(old)\\x",
        "\\\\server\\share\\runs",
        "C:\\runs\\",
        "D:\\my runs\\[1]",
    ),
    *("C:\\a,b\\x", "..\\x\\=1", "C:\\größe\\{a}", "C:\\a\\ b", "C:\\100%\\a", "C:data\\x"),
]


@pytest.mark.parametrize("key", ["data.root", "run", "resume", "hydra.run.dir", "init_from", "+logger.save_dir", "out"])
@pytest.mark.parametrize("path", WINDOWS_PATHS)
def test_a_backslash_of_windows_separates_folders(key: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.arguments.literals.WINDOWS", True)
    assert parse_overrides([f"{key}={path}"])[0].value() == path
    assert parse_overrides([literal(f"{key}={path}")])[0].value() == path  # the command line is read twice


def test_images_of_windows_may_be_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.arguments.literals.WINDOWS", True)
    for typed in ("C:\\(a)\\x.png,D:\\y.png", "[C:\\(a)\\x.png, D:\\y.png]"):
        assert parse_overrides([f"images={typed}"])[0].value() == ["C:\\(a)\\x.png", "D:\\y.png"]
    assert literal("init_from=C:\\(a)\\x,D:\\y", sweep=True) == "init_from='C:\\(a)\\x','D:\\y'"
    assert parse_overrides(["run='C:\\a\\(b)'"])[0].value() == "C:\\a\\(b)"


def test_elsewhere_a_backslash_escapes() -> None:
    assert parse_overrides(["run=a\\(b"])[0].value() == "a(b"
    assert parse_overrides(["run=outputs\\demo\\latest"])[0].value() == "outputs\\demo\\latest"


def test_a_pattern_on_a_drive_that_is_not_there_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)  # not even the root
    assert find_images(str(tmp_path / "*.png")) == ([], {str(tmp_path / "*.png"): "no such file"})


def test_python_values_mean_themselves() -> None:
    settings: dict[str, Any] = {
        "model": "vit_tiny",
        "optimizer": {"lr": np.float32(0.5), "betas": np.array([0.9, 0.5]), "weight_decay": np.float64(1e-4)},
        "metrics": ({"own": {"_target_": "mine.Metric", "a key: [x]": torch.tensor([1, 2])}},),
        "trainer.max_epochs": 5,
        "trainer": {"max_time": None, "benchmark": True},
        "notes": "a, b: 'c' \\ [d] 1",
        "tags": ["x y", "1e-3", "a'b"],
        "data": "image_folder",
        "data.root": Path("a b/c,d"),
    }
    config = compose_training(training_arguments([*as_arguments(settings)]))
    assert config.model.depth == compose_training(["model=vit_tiny"]).model.depth
    assert (config.optimizer.lr, list(config.optimizer.betas)) == (0.5, [0.9, 0.5])
    assert config.optimizer.weight_decay == 1e-4
    assert config.metrics == [{"own": {"_target_": "mine.Metric", "a key: [x]": [1, 2]}}]
    assert (config.trainer.max_epochs, config.trainer.max_time, config.trainer.benchmark) == (5, None, True)
    assert (config.notes, config.data.root) == (settings["notes"], "a b/c,d")
    assert list(config.tags) == settings["tags"]
    with pytest.raises(UserError, match=r"optimizer\.lr=<object"):
        list(as_arguments({"optimizer": {"lr": object()}}))
