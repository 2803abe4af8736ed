from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from vitlab.config.compose import compose_training
from vitlab.errors import UserError
from vitlab.runs.overrides import apply_overrides
from vitlab.runs.trust import check_links, check_paths


def test_only_what_lies_in_the_run_is_written_to(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for value in (str(run), str(run / "a" / ".." / "b"), f"sqlite:///{run}/mlflow.db", "https://mlflow.example"):
        check_paths({"logger": {"save_dir": value}}, run)
    check_paths([{"monitor": "val/acc", "name": "", "filename": "{epoch}", "patience": 3}, None], run)
    for node in (
        {"logger": {"save_dir": "elsewhere"}},
        {"logger": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}},
        {"logger": {"tracking_uri": "file:///elsewhere"}},
        {"logger": {"name": "../../x"}},
        {"callbacks": [{"filename": str(tmp_path / "x")}]},
        {"trainer": {"profiler": {"filename": "a/../../../x"}}},
        {"logger": {"tags": ["fine", "/etc/x"]}},
    ):
        with pytest.raises(UserError, match="outside of"):
            check_paths(node, run)


def test_links_within_a_run_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "wandb" / "run-1").mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("run-1")
    (tmp_path / "wandb" / "run-1" / "debug-core.log").symlink_to("/elsewhere")  # as wandb makes it
    check_links(tmp_path)
    (tmp_path / "notes").symlink_to("..")
    with pytest.raises(UserError, match=r"notes is a link to \.\., outside of the run"):
        check_links(tmp_path)


@pytest.mark.parametrize(
    ("data", "key", "own"),
    [
        (["data=image_folder", "data.root=x"], "cache_dir", None),
        (["data=cifar10"], "url", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
        (["data=cifar100"], "url", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"),
    ],
)
def test_where_a_run_s_images_come_from_and_go_to_holds_where_it_is_typed(
    data: list[str], key: str, own: str | None
) -> None:
    # A stranger's config would have any file downloaded to any folder.
    config = compose_training([*data, f"data.{key}=elsewhere", "name=x", "run_dir=x"])
    command = OmegaConf.create({"run": "x"})
    apply_overrides(config, [], command)
    assert config.data[key] == own
    apply_overrides(config, OverridesParser.create().parse_overrides([f"data.{key}=mine"]), command)
    assert config.data[key] == "mine"


def test_another_trainer_changes_only_the_machine() -> None:
    config = compose_training(
        ["trainer=gpu", "trainer.max_epochs=7", "trainer.sync_batchnorm=false", "name=x", "run_dir=x"]
    )
    overrides = OverridesParser.create().parse_overrides(["trainer=cpu", "trainer.log_every_n_steps=9"])
    apply_overrides(config, overrides, OmegaConf.create({"run": "x"}))
    assert (config.trainer.accelerator, config.trainer.devices) == ("cpu", 1)
    assert (config.trainer.max_epochs, config.trainer.sync_batchnorm, config.trainer.log_every_n_steps) == (7, False, 9)
