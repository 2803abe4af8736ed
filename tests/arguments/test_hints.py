"""A word of another tool, or of another place in the config, is answered by the right one."""

from collections import Counter
from typing import Any

import pytest
import yaml
from conftest import ROOT, Command

from vitlab.arguments.hints import _places, hint, hint_choice, without_dashes

TABLE = yaml.safe_load((ROOT / "conf" / "foreign_words.yaml").read_text())
# Names of keys in some choice, which other tools use for something else.
BOTH = {"ema", "layers", "monitor", "patience", "pretrained", "total_steps", "project", "run_name"}
BOTH |= {"tensorboard", "wandb", "color_jitter"}


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("lr", "optimizer.lr"),
        ("trainer.lr", "optimizer.lr"),
        ("epochs", "trainer.max_epochs"),
        ("max_epoch", "trainer.max_epochs"),
        ("data.epochs", "trainer.max_epochs"),
        ("batch_size", "data.batch_size"),
        ("model.batch_size", "data.batch_size"),
        ("weight_decay", "optimizer.weight_decay"),
        ("patience", "callbacks.early_stopping.patience"),
        ("callbacks.early_stopping.patience", "callbacks=early_stopping"),
        ("scheduler.patience", "scheduler.schedule.patience"),
        ("optimizer.momentum", "optimizer=sgd"),
        ("momentum", "optimizer=sgd"),
        ("train", "evaluate.py"),
        ("test", "trainer.limit_test_batches=0"),
        ("optimized_metric", "checkpoint.monitor"),
        ("ckpt_path", "resume=<run>"),
        ("hparams_search", "sweep=lr_wd"),
        ("data.num_workers", "images lie in memory"),
        ("pin_memory", "images lie in memory"),
        ("trainer.gpus", "trainer.devices"),
        ("data.data_dir", "data.root"),
        ("model.optimizer", "optimizer"),
        ("learningrate", "optimizer.lr"),
        ("data.train_images", "data=synthetic"),
        ("experment", "experiment"),
        ("model.dept", "depth"),
        ("logger.project", "logger=wandb"),
        ("seed_everything", "seed"),
        ("print_config", "--cfg job"),
    ],
)
def test_a_word_from_elsewhere(key: str, answer: str) -> None:
    assert answer in hint(key, ["depth", "name", "data", "trainer"])


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("lr=0.1", "optimizer.lr"),
        ("train=False", "evaluate.py"),
        ("optimizer.momentum=0.9", "optimizer=sgd"),
        ("++trainer.gpus=2", "trainer.devices"),
        ("checkpoint.save_last=true", "checkpoint.last_every_n_epochs"),
        ("+experiment=demo", "experiment=demo, without +"),
        ("logger=many_loggers", "logger=tensorboard"),
        ("model=resnet18", "model.name="),
        ("debug=fdr", "debug=fast"),
        ("trainer.min_epochs=2", "+trainer.min_epochs="),
        ("trainer.fast_dev_run=true", "+trainer.fast_dev_run="),
        ("optimizer.amsgrad=true", "+optimizer.amsgrad="),
        ("--lr 0.1 -b 32", "optimizer.lr=0.1 data.batch_size=32"),
        ("seed=1 --num-workers=4 --epochs 3", "trainer.max_epochs=3; num_workers: images lie in memory"),
        ("--resume x", "resume=x"),
    ],
)
def test_the_command_line_gives_the_hint(argument: str, answer: str, in_process: Command) -> None:
    result = in_process("train.py", *argument.split())
    assert result.returncode == 2
    assert answer in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_options_of_the_other_commands() -> None:
    assert "images=x" in without_dashes(["--images", "x"], own=["images"])
    assert "data.root=a" in without_dashes(["--data-dir=a"])
    assert without_dashes(["-m", "seed=1", "lr=-1", "-"], allowed=["-m"]) == without_dashes([]) == ""


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["evaluate.py", "runn=x"], "'run'"),
        (["evaluate.py", "ckpt_path=x"], "run=<run>"),
        (["evaluate.py", "x"], "not of the form"),
        (["evaluate.py", "name=x"], "which model?"),
        (["predict.py", "--images", "x", "--batch-size", "3"], "images=x data.batch_size=3"),
        (["predict.py", "run=x", "image=x"], "'images'"),
        (["predict.py", "run=", "images=x"], "run= is empty"),
        (["train.py", "-m", "resume=x"], "resume="),
        (["train.py", "resume=x", "epochs=3", "hydra.run.dir=y"], "resume=x does not exist"),
        (["-m", "vitlab.bench", "--name", "step"], "name=step"),
    ],
)
def test_mistakes_of_the_other_commands(arguments: list[str], answer: str, in_process: Command) -> None:
    result = in_process(*arguments)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert answer in result.stderr


def test_a_choice_near_another_is_not_taken_for_a_stranger() -> None:
    assert "any other" not in hint_choice("optimizer", "adamv", ["adamw", "sgd"])
    assert "optimizer._target_" in hint_choice("optimizer", "lion", ["adamw", "sgd"])
    assert "'adamw'" in hint_choice("optimizer", "AdamW", ["adam", "adamw", "sgd"])


def test_the_table_has_each_word_once_and_no_name_of_ours() -> None:
    words = Counter(word for words in TABLE.values() for word in str(words).split())
    assert {word for word, count in words.items() if count > 1} == set()
    assert set(words) & set(_places()) == BOTH


def test_each_answer_of_the_table_that_is_a_key_exists() -> None:
    keys = {path for paths in _places().values() for path in paths} | {"hydra.run.dir", "preflight"}
    commands: Any = (yaml.safe_load((ROOT / "conf" / "predict.yaml").read_text()) or {}).keys()
    answers = {answer for answer in TABLE if answer.replace(".", "").replace("_", "").isalnum()}
    assert answers <= keys | set(commands)
