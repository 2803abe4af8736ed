"""A run has its directory for itself."""

from pathlib import Path

import pytest
from config.test_compose import CONF
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vitlab.runs.run_guard import RunGuard


def start(folder: Path | str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", list(overrides), return_hydra_config=True)
        config.hydra.run.dir = str(folder)  # as the time of day gives it
        RunGuard().on_run_start(config)
    return config


def test_runs_that_start_in_the_same_second_get_directories_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "vit_scratch" / "2026-01-01_00-00-00"
    started = [start(folder).hydra.run.dir for _ in range(3)]
    assert started == [str(folder), f"{folder}_2", f"{folder}_3"]
    assert all(Path(path).is_dir() for path in started)


def test_the_home_folder_is_found_in_values_of_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = start("~/runs/1", 'data.root="~/pics"', 'init_from="~x"')
    assert config.hydra.run.dir == str(tmp_path / "runs" / "1")
    assert (config.data.root, config.init_from) == (str(tmp_path / "pics"), "~x")
