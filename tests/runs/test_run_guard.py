"""A run has its directory for itself."""

from pathlib import Path

from config.test_compose import CONF
from hydra import compose, initialize_config_dir

from vitlab.runs.run_guard import RunGuard


def start(folder: Path) -> str:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [], return_hydra_config=True)
        config.hydra.run.dir = str(folder)  # as the time of day gives it
        RunGuard().on_run_start(config)
    return config.hydra.run.dir


def test_runs_that_start_in_the_same_second_get_directories_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "vit_scratch" / "2026-01-01_00-00-00"
    started = [start(folder) for _ in range(3)]
    assert started == [str(folder), f"{folder}_2", f"{folder}_3"]
    assert all(Path(path).is_dir() for path in started)
