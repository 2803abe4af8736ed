"""Test which runs count as one experiment, and which settings distinguish the others."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from sweeps.runs import write_run

from vitlab.leaderboard.ranking import experiment_of, short_names, value_of, varied_settings
from vitlab.leaderboard.results import Result, read_result


def runs(folder: Path, *typed: str) -> list[Result]:
    return [read_result(write_run(folder / str(i), *words.split())) for i, words in enumerate(typed)]


def test_seed_name_and_directory_do_not_make_another_experiment(tmp_path: Path) -> None:
    found = runs(tmp_path, "seed=0 name=a", "seed=1 name=b", "seed=2")
    assert len(set(map(experiment_of, found))) == 1
    assert varied_settings(found) == []


def test_loggers_do_not_make_another_experiment(tmp_path: Path) -> None:
    found = runs(tmp_path, "seed=0 logger=wandb logger.wandb.id=a", "seed=1 logger=wandb logger.wandb.id=b", "seed=2")
    assert len(set(map(experiment_of, found))) == 1
    assert varied_settings(found) == []


def test_what_is_measured_on_the_images_of_a_fold_does_not_make_another_experiment(tmp_path: Path) -> None:
    found = []
    for weights in ("balanced", "null"):
        for fold in range(2):
            given = ["data=synthetic", "data.folds=2", f"data.fold={fold}", f"loss.class_weights={weights}"]
            run = write_run(tmp_path / f"{weights}{fold}", *given)
            config = OmegaConf.load(run / "config.yaml")
            config.data.mean = [fold / 2] * 3
            config.loss.class_weights = [1.0, fold] if weights == "balanced" else None
            OmegaConf.save(config, run / "config.yaml")
            found.append(read_result(run))
    names = list(map(experiment_of, found))
    assert names[0] == names[1] != names[2] == names[3]
    assert varied_settings(found) == ["loss.class_weights"]
    assert [value_of(result, "loss.class_weights") for result in found[::2]] == ["balanced", "null"]


@pytest.mark.parametrize(
    "other", ["optimizer.lr=0.02", "loss.label_smoothing=0", "data.split_seed=1", "trainer.precision=16-true"]
)
def test_any_other_setting_does(tmp_path: Path, other: str) -> None:
    found = runs(tmp_path, "seed=0", f"seed=0 {other}")
    assert len(set(map(experiment_of, found))) == 2
    assert varied_settings(found) == [other.partition("=")[0]]


def test_one_and_one_point_zero_are_the_same(tmp_path: Path) -> None:
    found = runs(tmp_path, "trainer.gradient_clip_val=1", "trainer.gradient_clip_val=1.0")
    assert len(set(map(experiment_of, found))) == 1


def test_one_and_true_are_not(tmp_path: Path) -> None:
    found = runs(tmp_path, "trainer.profiler=1", "trainer.profiler=true")
    assert varied_settings(found) == ["trainer.profiler"]


def test_a_group_choice_replaces_its_content(tmp_path: Path) -> None:
    found = runs(tmp_path, "model=vit_scratch", "model=vit_tiny", "model=vit_small")
    assert varied_settings(found) == ["model"]


def test_several_choices_of_a_group_are_one_setting(tmp_path: Path) -> None:
    found = runs(tmp_path, "augment=basic", "augment=[basic,blur]", "augment=[basic,blur,grayscale]")
    assert varied_settings(found) == ["augment"]
    assert value_of(found[1], "augment") == "[basic,blur]"


def test_given_settings_of_a_chosen_group_are_shown(tmp_path: Path) -> None:
    found = runs(tmp_path, "model=vit_scratch", "model=vit_tiny", "model=vit_tiny model.depth=3")
    assert varied_settings(found) == ["model", "model.depth"]


def test_settings_that_refer_to_another_are_not_shown(tmp_path: Path) -> None:
    found = runs(tmp_path, "data.image_size=32", "data.image_size=64")
    assert found[0].settings["model.image_size"] != found[1].settings["model.image_size"]
    assert varied_settings(found) == ["data.image_size"]


def test_settings_computed_from_the_images_are_not_shown(tmp_path: Path) -> None:
    """The mean is null in the composed config, and that of the images that are trained on in the run's."""
    found = runs(
        tmp_path,
        "data=image_folder data.root=x data.max_train_images=10",
        "data=image_folder data.root=x data.max_train_images=20",
    )
    for number, run in enumerate(found):
        file = run.path / "config.yaml"
        file.write_text(re.sub("mean: null", f"mean: [0.{number}, 0.5, 0.5]", file.read_text()))
    found = [read_result(run.path) for run in found]
    assert found[0].settings["data.mean"] != found[1].settings["data.mean"]
    assert varied_settings(found) == ["data.max_train_images"]


def test_changed_defaults_are_shown(tmp_path: Path) -> None:
    found = runs(tmp_path, "optimizer.lr=0.1", "optimizer.lr=0.2")
    for run in found:
        (run.path / ".hydra" / "overrides.yaml").write_text("[]")
    assert varied_settings([read_result(run.path) for run in found]) == ["optimizer.lr"]


def test_runs_without_hydra_files_are_distinguished_by_their_settings(tmp_path: Path) -> None:
    found = runs(tmp_path, "model=vit_tiny", "model=vit_small")
    (found[0].path / ".hydra" / "hydra.yaml").unlink()
    assert varied_settings([read_result(run.path) for run in found]) == ["model.embed_dim", "model.num_heads"]


def test_short_names() -> None:
    keys = ["optimizer.lr", "model.dropout", "head.dropout", "model", "optimizer._target_", "a.b.c", "x.b.c"]
    assert short_names(keys) == {
        "optimizer.lr": "lr",
        "model.dropout": "model.dropout",
        "head.dropout": "head.dropout",
        "model": "model",
        "optimizer._target_": "optimizer",
        "a.b.c": "a.b.c",
        "x.b.c": "x.b.c",
    }


def test_a_setting_does_not_take_a_group_s_name() -> None:
    names = short_names(["model", "other.model"])
    assert names["model"] == "model"
    assert names["other.model"] == "other.model"
