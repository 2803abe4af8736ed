"""The config is checked before torch is imported: names, types, ranges, and what does not fit together."""

import inspect
import pkgutil
import shutil
from pathlib import Path

import pytest
import yaml
from config.test_compose import CONF, LONG, mistakes_of
from conftest import ROOT, SMALL_RUN, Command
from omegaconf import OmegaConf

from vitlab.config import compose as composition
from vitlab.config.check import FILLING, GROUPS, SETTINGS
from vitlab.config.instantiate import keep_accepted_keys
from vitlab.config.signatures import find_definition, read_signature, signature_of


def mistakes(*overrides: str, conf: Path = CONF) -> list[str]:
    return mistakes_of(*overrides, conf=conf)[1]


@pytest.mark.parametrize("level", ["off", "false", "light", "full"])  # YAML reads an unquoted off as false
def test_figures_can_be_switched(level: str) -> None:
    assert mistakes(f"callbacks.figures.level={level}") == []


def test_mixing_may_end_before_a_number_of_steps() -> None:
    assert (
        mistakes("augment=strong", "augment.mixing.off_share=0.2", "trainer.max_epochs=-1", "trainer.max_steps=999")
        == []
    )


@pytest.mark.parametrize("debug", ["fast", "profile"])
@pytest.mark.parametrize("experiment", ["cifar10_cpu_30min", "cifar10_scratch", "demo"])
def test_every_kind_of_experiment_can_be_debugged(experiment: str, debug: str) -> None:
    assert mistakes(f"experiment={experiment}", f"debug={debug}") == []


@pytest.mark.parametrize(
    ("target", "more", "dropped"),
    [
        ("optimizer._target_=torch.optim.SGD", [], {"optimizer.betas", "optimizer.eps"}),
        (
            "scheduler.schedule._target_=torch.optim.lr_scheduler.StepLR",
            ["++scheduler.schedule.step_size=2"],
            {f"scheduler.schedule.{key}" for key in ("total_steps", "warmup", "min_lr_ratio")},
        ),
        (
            "scheduler.schedule._target_=torch.optim.lr_scheduler.OneCycleLR",  # takes total_steps too
            ["++scheduler.schedule.max_lr=0.1"],
            {"scheduler.schedule.warmup", "scheduler.schedule.min_lr_ratio"},
        ),
        ("callbacks.figures._target_=vitlab.callbacks.LayerStatistics", [], {"callbacks.figures.level"}),
        ("augment.crop._target_=vitlab.data.RandomHorizontalFlip", ["++augment.crop.p=1"], {"augment.crop.padding"}),
        (
            "data._target_=vitlab.data.SyntheticDataModule",
            ["++data.train_images=9000", "++data.test_images=9", "++data.noise=0", "++data.data_seed=0"],
            {"data.root", "data.url", "data.md5"},
        ),
        ("optimizer._target_=torch.optim.SGD", ["optimizer.lr=1"], {"optimizer.betas", "optimizer.eps"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_new_target_keeps_the_keys_that_it_takes(target: str, more: list[str], dropped: set[str]) -> None:
    config, found = mistakes_of(target, *more)
    assert found == []
    assert set(keep_accepted_keys(config, [target, *more])) == dropped
    for path in dropped:
        assert OmegaConf.select(config, path) is None


def test_a_network_that_takes_any_keys_gets_the_number_of_classes() -> None:
    config = composition.compose_training(["model._target_=torchvision.models.resnet18", "run_dir=x", "name=x"])
    keep_accepted_keys(config, ["model._target_=torchvision.models.resnet18"])
    assert set(config.model) == {"_target_", "weights", "num_classes"}


def test_a_key_of_a_new_target_that_it_does_not_take_is_a_mistake(in_process: Command) -> None:
    new = "scheduler.schedule._target_=torch.optim.lr_scheduler.StepLR"
    result = in_process("train.py", new, "scheduler.schedule.step_sice=2", "scheduler.schedule.warmup=3")
    assert result.returncode == 2
    assert "Did you mean 'step_size'?" in result.stderr
    assert "unknown key 'scheduler.schedule.warmup'" in result.stderr


def test_the_keys_that_a_new_target_does_not_take_are_said(in_process: Command) -> None:
    quick = [*SMALL_RUN, "preflight=off", "trainer.max_epochs=1", "logger=none"]
    new = ["scheduler.schedule._target_=torch.optim.lr_scheduler.StepLR", "scheduler.schedule.step_size=1"]
    result = in_process("train.py", *quick, *new)
    assert result.returncode == 0, result.stderr
    assert "scheduler.schedule.min_lr_ratio" in result.stdout


def test_the_names_at_the_top_are_those_of_the_files() -> None:
    declared = set(yaml.safe_load((CONF / "train.yaml").read_text())) - {"defaults", "hydra"}
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra"}
    assert declared | groups == {*GROUPS, *SETTINGS, *FILLING}


CYCLIC = [
    *("scheduler=constant", "scheduler.schedule._target_=torch.optim.lr_scheduler.CyclicLR"),
    *("~scheduler.schedule.factor", "+scheduler.schedule.base_lr=1e-4"),
    "+scheduler.schedule.max_lr=1e-2",
]
SEPARATE = [
    # names
    (["+optimizer.lrr=1"], "unknown key 'optimizer.lrr'. Did you mean 'lr'?"),
    (["+model.depht=3"], "unknown key 'model.depht'. Did you mean 'depth'?"),
    (["+data.batchsize=3"], "unknown key 'data.batchsize'. Did you mean 'batch_size'?"),
    (["+trainer.max_epoch=3"], "unknown key 'trainer.max_epoch'. Did you mean 'max_epochs'?"),
    (["+scheduler.schedule.warm_up=3"], "unknown key 'scheduler.schedule.warm_up'. Did you mean 'warmup'?"),
    (["+scheduler.warmup=3"], "unknown key 'scheduler.warmup'"),
    (["+checkpoint.metric=val/acc"], "unknown key 'checkpoint.metric'"),
    (["+augment.flip.prob=0.5"], "unknown key 'augment.flip.prob'"),
    (["+callbacks.progress.refresh=1"], "unknown key 'callbacks.progress.refresh'. Did you mean 'refresh_seconds'?"),
    (["+loss.lable_smoothing=0.1"], "unknown key 'loss.lable_smoothing'. Did you mean 'label_smoothing'?"),
    (["+data.seed=1"], "data.seed can't be set here: vitlab passes it to vitlab.data.CIFAR10DataModule itself"),
    (["callbacks=early_stopping", "+callbacks.early_stoping.patience=3"], "Did you mean 'early_stopping'?"),
    (["optimizer._target_=torch.optim.AdamX"], "torch.optim has no AdamX. Did you mean 'Adam'?"),
    (["optimizer._target_=torch.optim.Lamb"], "optimizer._target_=torch.optim.Lamb: torch.optim has no Lamb"),
    (["data=image_folder"], "data.root in conf/data/image_folder.yaml must be given: add data.root=..."),
    (
        ["callbacks.nan=skip"],
        "callbacks.nan=skip: callbacks.nan takes keys: callbacks.nan.action=stop|skip; null",
    ),
    (
        ["callbacks.figures=off"],
        "callbacks.figures=off: callbacks.figures takes keys: callbacks.figures.level=off|light|full; null",
    ),
    (
        ["augment.flip=0.5"],
        "augment.flip=0.5: augment.flip takes keys: augment.flip.alternating=..., augment.flip.p=...",
    ),
    # types
    (["trainer.max_epochs=abc"], "trainer.max_epochs=abc must be a whole number of at least 1"),
    (["trainer.max_epochs=3.5"], "trainer.max_epochs=3.5 must be a whole number of at least 1"),
    (["optimizer.lr=fast"], "optimizer.lr=fast must be a number above 0"),
    (["trainer.deterministic=maybe"], "trainer.deterministic=maybe must be true or false, or warn, or null"),
    (["trainer.precision=float12"], "trainer.precision=float12 must be "),
    (["model.qk_norm=3"], "model.qk_norm=3 must be true or false"),
    (["data.root=3"], "data.root=3 must be text"),
    (["compile=1"], "compile=1 must be true or false"),
    (["optimizer.betas=0.9"], "optimizer.betas=0.9 must be a list of 2, each a number of at least 0 and below 1"),
    (["+optimizer.amsgrad=3"], "optimizer.amsgrad=3 must be true or false"),
    # ranges
    (["optimizer.lr=0"], "optimizer.lr=0 must be a number above 0"),
    (["optimizer.lr=-1e-3"], "optimizer.lr=-0.001 must be a number above 0"),
    (["model.dropout=1.0"], "model.dropout=1.0 must be a number of at least 0 and below 1"),
    (["data.batch_size=0"], "data.batch_size=0 must be a whole number of at least 1"),
    (["loss.label_smoothing=1"], "loss.label_smoothing=1 must be a number of at least 0 and below 1"),
    (["trainer.limit_train_batches=1.5"], "trainer.limit_train_batches=1.5 must be a whole number of batches"),
    (["data.std=[0.2,0.2,0]"], "data.std=[0.2, 0.2, 0] must be a list of 3, each a number above 0"),
    (["augment.flip.p=2"], "augment.flip.p=2 must be a number of at least 0 and at most 1"),
    (["augment.mixing.p=-1"], "augment.mixing.p=-1 must be a number of at least 0 and at most 1"),
    (["augment.mixing.mixup_alpha=0"], "augment.mixing.mixup_alpha=0 must be a number above 0"),
    (
        ["augment.erasing.area=[0.1,2]"],
        "augment.erasing.area=[0.1, 2] must be a list of 2, each a number of at least 0",
    ),
    (["augment.flip.alternating=yes_please"], "augment.flip.alternating=yes_please must be true or false"),
    (["data.repeated_augmentation=0"], "data.repeated_augmentation=0 must be a whole number of at least 1"),
    (["finetune.layer_decay=1.5"], "finetune.layer_decay=1.5 must be a number above 0 and at most 1"),
    (["model.pool=max"], "model.pool=max must be one of cls, mean, attention"),
    (["model.stem=resnet"], "model.stem=resnet must be one of patch, shifted, conv"),
    (["model.layer_scale=0"], "model.layer_scale=0 must be a number above 0, or null"),
    (["model.patch_dropout=1"], "model.patch_dropout=1 must be a number of at least 0 and below 1"),
    (["model.locality_attention=yes"], "model.locality_attention=yes must be true or false"),
    (["callbacks.figures.level=more"], "callbacks.figures.level=more must be one of off, light, full"),
    (["preflight=maybe"], "preflight=maybe must be one of strict, warn, only, off"),
    (["seed=-1"], "seed=-1 must be a whole number from 0 to 4294967295"),
    (["trainer.accelerator=cpuu"], "Did you mean 'cpu'?"),
    (["trainer.strategy=dpp"], "Did you mean 'ddp'?"),
    (["trainer.precision=bf16-mixd"], "Did you mean 'bf16-mixed'?"),
    (["trainer.devices=0"], "must be auto, a number of devices, or a list of their indices"),
    (["trainer.max_time=abc"], "must be DD:HH:MM:SS"),
    (["trainer.max_time=00:00:00:00"], "must be DD:HH:MM:SS above 0"),
    (["trainer.limit_train_batches=0"], "must be a whole number of batches of at least 1"),
    (["optimizer.lr='1e-3'"], "optimizer.lr='1e-3' must be a number above 0"),
    (["checkpoint.monitor=[a]"], "checkpoint.monitor=['a'] must be text"),
    (["scheduler.monitor=5"], "scheduler.monitor=5 must be text"),
    (["~seed"], "seed is missing"),
    (["scheduler=plateau", "~scheduler.monitor"], "scheduler.monitor is missing"),
    (["trainer.max_epochs=${foo}"], "trainer.max_epochs can't be resolved: Interpolation key 'foo' not found"),
    (["+width=abc", "model.embed_dim=${width}"], "model.embed_dim=abc must be a whole number of at least 1"),
    (["+experiment.optimizer.lr=1"], "experiment takes no effect"),
]
# Values that do not fit together.
COMBINED = [
    (["scheduler=plateau", "scheduler.schedule.mode=min"], "scheduler.schedule.mode: mode=min of val/acc would select"),
    (["model.image_size=[32,30]", "model.patch_size=[8,8]"], "image_size=30 is not a multiple of patch_size=8"),
    (["model.patch_size=5"], "image_size=32 is not a multiple of patch_size=5: take patch_size=4"),
    (["model.stem=conv", "model.patch_size=6"], "stem=conv halves the sides: patch_size must be 2, 4, 8 ...: take 8"),
    (["model=vit_hybrid", "model.patch_size=1"], "stem=conv halves the sides: patch_size must be 2, 4, 8 ...: take 2"),
    (["model.num_heads=5"], "embed_dim=192 is not a multiple of num_heads=5: take embed_dim=190 or num_heads=4"),
    (["model.embed_dim=90"], "pos_embed=sincos2d needs embed_dim to be a multiple of 4, not 90: take 88"),
    (
        ["model.rotary=true", "model.num_heads=32"],
        "to be a multiple of 4, not 6: take embed_dim=256",
    ),
    (["scheduler.schedule.warmup=100000"], "warmup=100000 takes 100000 of the run's 10530 steps"),
    (["trainer.max_steps=10", "scheduler.schedule.warmup=10"], "warmup=10 takes 10 of the run's 10 steps"),
    (["trainer.devices=3"], "batch_size=128 does not divide among 3 devices: take 129"),
    (["debug=profile", "+trainer.profiler.shedule=1"], "unknown key 'trainer.profiler.shedule'"),
    (["trainer=cpu", "trainer.precision=16-mixed"], "a CPU does not train in float16; take auto"),
    (["scheduler=plateau", "data.val_size=0"], "scheduler follows val/acc, but data.val_size=0 leaves no validation"),
    (["scheduler=plateau", "scheduler.monitor=null"], "ReduceLROnPlateau needs scheduler.monitor"),
    (["scheduler=plateau", "scheduler.interval=step"], "take interval=epoch"),
    (
        ["checkpoint.monitor=val/accuracy"],
        "not val/accuracy. Did you mean 'val/acc'? (for a metric of your own add +checkpoint.mode=max or min)",
    ),
    (["checkpoint.monitor=val/acc_ema"], "checkpoint follows val/acc_ema, which callbacks=ema measures: add that"),
    (["callbacks=ema", "callbacks.ema.decay=1"], "callbacks.ema.decay=1 must be a number of at least 0 and below 1"),
    (["callbacks=ema", "callbacks.ema.warmup=0"], "callbacks.ema.warmup=0 must be a number above 0"),
    (["optimizer=muon", "optimizer.ns_steps=0"], "optimizer.ns_steps=0 must be a whole number of at least 1"),
    (["+checkpoint.mode=min"], "checkpoint.mode: mode=min of val/acc would select the worst epoch: take mode=max"),
    (["+checkpoint.mode=best"], "checkpoint.mode=best must be one of min, max"),
    (["scheduler=plateau", "scheduler.monitor=my/metric"], "add scheduler.schedule.mode=max or min"),
    (
        ["callbacks=early_stopping", "callbacks.early_stopping.monitor=my/metric"],
        "add callbacks.early_stopping.mode=max",
    ),
    (["scheduler=time_budget", "trainer.max_epochs=-1"], "follows the time budget: set trainer.max_time=DD:HH:MM:SS"),
    (
        ["scheduler=time_budget", "trainer.max_time=00:00:30:00"],
        "this schedule ends with trainer.max_time: set trainer",
    ),
    (
        ["scheduler=time_budget", *LONG, "scheduler.schedule.warmup=5"],
        "warmup=5 must be a fraction of trainer.max_time",
    ),
    (
        ["scheduler=linear", "scheduler.schedule.min_lr_ratio=2"],
        "scheduler.schedule.min_lr_ratio=2 must be a number of at least 0 and at most 1",
    ),
    (["trainer.max_epochs=-1"], "this schedule must know the run's length"),
    (["trainer.max_epochs=-1", "scheduler=constant"], "the run would never end"),
    (["data.num_classes=9"], "num_classes=9, but data.classes names 10"),
    (["data.val_size=50000"], "val_size=50000 leaves no image to train on"),
    (["data.max_train_images=100"], "batch_size=128 is more than the 100 training images"),
]


Cases = list[tuple[list[str], str]]


def groups(cases: Cases) -> list[Cases]:
    """Up to eight cases of one key each, none inside of another, which are composed once; the others by themselves."""
    found: list[dict[str, tuple[list[str], str]]] = []
    for case in cases:
        overrides, _ = case
        key = overrides[0].lstrip("+").partition("=")[0]
        is_single = len(overrides) == 1 and "." in key and not key.endswith("_target_")
        for group in found if is_single else []:
            apart = not any(f"{key}.".startswith(f"{k}.") or f"{k}.".startswith(f"{key}.") for k in group)
            if len(group) < 8 and apart and "" not in group:
                group[key] = case
                break
        else:
            found.append({key if is_single else "": case})
    return [list(group.values()) for group in found]


@pytest.mark.parametrize("cases", [*groups(SEPARATE), *([case] for case in COMBINED)], ids=lambda c: str(c[0][0])[:40])
def test_one_mistake_is_one_sentence(cases: Cases) -> None:
    lines = mistakes(*(override for overrides, _ in cases for override in overrides))
    assert len(lines) == len(cases)
    for _, sentence in cases:
        assert len([line for line in lines if sentence in line]) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer._target_=torch.optim.RAdam", "+optimizer.decoupled_weight_decay=true"],
        ["trainer.max_epochs=-1", "trainer.max_steps=100"],
        ["trainer.devices=[0,1]", "trainer.limit_val_batches=0.5", "trainer.val_check_interval=10"],
        ["trainer.max_time=00:01:00:00", "trainer.max_epochs=null", "scheduler=constant"],
        ["model._target_=torchvision.models.resnet18", "+model.weights=null"],
        ["+trainer.reload_dataloaders_every_n_epochs=1", "trainer.profiler=simple"],
        ["checkpoint.monitor=val/loss", "callbacks=early_stopping", "scheduler=plateau", "scheduler.monitor=val/loss"],
        # rules hold only for the classes that they were written for
        ["optimizer._target_=timm.optim.Adan", "optimizer.betas=[0.98,0.92,0.99]"],
        ["optimizer._target_=torch.optim.Adafactor", "optimizer.eps=[null,1e-3]", "~optimizer.betas"],
        [*CYCLIC, "+scheduler.schedule.mode=triangular2"],
        [
            "checkpoint.monitor=my/metric",
            "+checkpoint.mode=max",
            "callbacks=early_stopping",
            "callbacks.early_stopping.mode=max",
        ],
        ["scheduler=plateau", "scheduler.monitor=my/metric", "scheduler.schedule.mode=max"],
        ["+callbacks.mine._target_=stoppers.PoisonBatch", "+callbacks.mine.epoch=1", "+callbacks.mine.batch=2"],
        ["callbacks.progress=null", "augment.flip=null", "logger=none"],
        ["~callbacks", "~augment", "~logger"],
        ["logger=[tensorboard,csv]", "logger.csv=null"],
        ["augment=[autoaugment,resized_crop,color_jitter]", "augment.color_jitter.hue=0.5"],
        ["logger=none", "+logger._target_=pytorch_lightning.loggers.CSVLogger", "+logger.save_dir=x"],
        ["+width=64", "model.embed_dim=${width}", "model.num_heads=2"],
        ["optimizer.betas=[0.9,0.95]", "data.val_size=0", "trainer.precision=bf16-mixed"],
        ["+callbacks.summary._target_=pytorch_lightning.callbacks.ModelSummary", "+callbacks.summary.max_depth=2"],
    ],
    ids=lambda value: value[0],
)
def test_what_is_right_passes(overrides: list[str]) -> None:
    assert mistakes(*overrides) == []


def test_all_mistakes_are_said_at_once_with_the_file_they_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    monkeypatch.setattr(composition, "CONF", conf)
    experiment = {"optimizer": {"lrr": 1}, "trainer": {"max_epochs": "many"}, "batch_sise": 3, "data": {"val_size": -1}}
    (conf / "experiment" / "mine.yaml").write_text("# @package _global_\n" + yaml.dump(experiment))
    (conf / "model" / "mine.yaml").write_text("defaults: [vit_scratch]\nnum_head: 3\n")
    lines = mistakes("experiment=mine", "model=mine", "+model.dept=3", "optimizer.eps=-1", conf=conf)
    assert sorted(lines) == [
        "data.val_size=-1 in conf/experiment/mine.yaml must be a number of at least 0",
        "optimizer.eps=-1 must be a number of at least 0",
        "trainer.max_epochs=many in conf/experiment/mine.yaml must be a whole number of at least 1, "
        "or -1 for no limit, or null",
        "unknown key 'batch_sise' in conf/experiment/mine.yaml. Did you mean 'data.batch_size'?",
        "unknown key 'model.dept'. Did you mean 'depth'?",
        "unknown key 'model.num_head' in conf/model/mine.yaml. Did you mean 'num_heads'?",
        "unknown key 'optimizer.lrr' in conf/experiment/mine.yaml. Did you mean 'lr'?",
    ]


def test_the_command_line_gets_all_of_them(in_process: Command, tmp_path: Path) -> None:
    mistyped = ["optimizer.lrr=1", "modle=vit", "scheduler=cosinus", "model.depth=[3"]
    result = in_process("train.py", *mistyped, "trainer.max_epochs=abc", "+model.depht=3")
    assert result.returncode == 2
    assert result.stdout == ""
    assert sorted(result.stderr.splitlines()) == [
        "error: 'model.depth=[3' is not of the form key=value (no viable alternative at input '[3'); "
        "for this very text type 'model.depth=\"[3\"'",
        "error: there is no scheduler=cosinus. Did you mean 'cosine'? "
        "(scheduler: constant, cosine, linear, linear_time_budget, plateau, step, time_budget)",
        "error: trainer.max_epochs=abc must be a whole number of at least 1, or -1 for no limit, or null",
        "error: unknown key 'model.depht'. Did you mean 'depth'?",
        "error: unknown key 'modle'. Did you mean 'model'?",
        "error: unknown key 'optimizer.lrr'. Did you mean 'lr'?",
    ]
    assert not (tmp_path / "outputs").exists()  # nothing was begun


def test_all_jobs_of_a_sweep_are_checked_before_the_first_trains(in_process: Command, tmp_path: Path) -> None:
    result = in_process("train.py", "-m", "optimizer.lr=1e-3,0", "model.depth=0,1")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: model.depth=0 must be a whole number of at least 1",
        "error: optimizer.lr=0 must be a number above 0",
    ]
    assert not list(tmp_path.rglob("*.ckpt"))
    result = in_process("train.py", "-m", "optimizer.lrr=1,2", "model=vit_tiny,vit_tny")
    assert result.returncode == 2
    assert "Traceback" not in result.stdout + result.stderr
    assert len(result.stderr.splitlines()) == 2
    assert "error: unknown key 'optimizer.lrr'. Did you mean 'lr'?" in result.stderr
    assert "there is no model=vit_tny. Did you mean 'vit_tiny'?" in result.stderr


def test_a_check_that_breaks_is_not_passed_over(in_process: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "find_mistakes", lambda *_: 1 / 0)
    result = in_process("train.py", "experiment=demo")
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["optimizer=null"], "error: there is no optimizer=null (optimizer: adam, adamw, muon, sgd"),
        (["trainer=5"], "error: there is no trainer=5 (trainer: cpu, ddp, ddp_cpu, default, fsdp, gpu, mps, slurm)"),
        (["optimizer.lr=1e-3,1e-2"], "error: optimizer.lr=1e-3,1e-2 has several values: add -m to sweep over them"),
        (["name=a,b"], "error: name=a,b has several values: add -m to sweep over them, or write 'name=\"a,b\"'"),
    ],
    ids=str,
)
def test_what_does_not_compose(arguments: list[str], sentence: str, in_process: Command) -> None:
    result = in_process("train.py", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(sentence)
    assert len(result.stderr.splitlines()) == 1


def test_a_file_that_is_no_yaml(in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "bad.yaml").write_text("optimizer:\n  lr: [1\n")
    result = in_process("train.py", "--config-dir=mine", "experiment=bad")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "mine/experiment/bad.yaml, line 3 is no YAML" in result.stderr


MY_MODULE = """
from typing import Literal, Optional, Union
import torch
from torch import nn

Side = Union[int, tuple[int, int]]

class Base(nn.Module):
    def __init__(self, num_classes: int, *, image_size: Side = 32, name: Optional[str] = None, bias=True):
        super().__init__()

class Child(Base):
    def __init__(self, kind: Literal["a", "b"], width: "int" = 3, **shared):
        super().__init__(name="child", **shared)

class Grandchild(Child):
    pass

Alias = Grandchild

def make(num_classes: int, *, layers: list[int], **anything):
    return Base(num_classes)
"""


@pytest.fixture
def my_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("from .nets import *\n")
    (tmp_path / "mine" / "nets.py").write_text(MY_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "mine"


def test_signatures_are_read_through_imports_bases_and_aliases(my_module: str) -> None:
    for name in ("Child", "Grandchild", "Alias"):
        signature = read_signature(f"mine.{name}", "model")
        assert set(signature.parameters) == {"num_classes", "image_size", "bias", "kind", "width"}
        assert not signature.is_open
        assert [n for n, p in signature.parameters.items() if p.required] == ["num_classes", "kind"]
    assert read_signature("mine.make", "model").is_open


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["+model.kind=c"], "model.kind=c must be one of a, b"),
        (["+model.kind=a", "+model.width=wide"], "model.width=wide must be a whole number"),
        (["+model.kind=a", "+model.name=x"], "unknown key 'model.name'"),
        ([], "model lacks kind, which mine.Grandchild needs"),
    ],
    ids=str,
)
def test_a_network_of_one_s_own_is_checked_too(overrides: list[str], sentence: str, my_module: str) -> None:
    (line,) = mistakes("model._target_=mine.Grandchild", *overrides)
    assert sentence in line


def targets() -> list[str]:
    found = set()
    for file in CONF.rglob("*.yaml"):
        found |= set(_targets_in(yaml.safe_load(file.read_text())))
    return sorted(found)


def _targets_in(node: object) -> list[str]:
    if not isinstance(node, dict):
        return []
    own = [node["_target_"]] if "_target_" in node else []
    return own + [target for value in node.values() for target in _targets_in(value)]


OTHERS = [
    *(f"torch.optim.{name}" for name in ("Adadelta", "NAdam", "RMSprop", "Muon", "LBFGS")),
    *(f"torch.optim.lr_scheduler.{name}" for name in ("OneCycleLR", "CosineAnnealingLR", "LinearLR", "PolynomialLR")),
    "pytorch_lightning.callbacks.StochasticWeightAveraging",
    "pytorch_lightning.callbacks.WeightAveraging",
    "pytorch_lightning.callbacks.ModelCheckpoint",
    "pytorch_lightning.profilers.PyTorchProfiler",
    "torchvision.models.resnet18",
    "torchvision.transforms.v2.RandAugment",
    "timm.create_model",
    "timm.optim.Lamb",
    "timm.models.vision_transformer.VisionTransformer",
    "torchmetrics.classification.MulticlassAccuracy",
]


@pytest.mark.parametrize(
    "target",
    [t for t in (*targets(), *OTHERS) if not t.startswith(("vitlab.runs.run_guard", "hydra_plugins.", "optuna."))],
)
def test_what_is_read_from_the_source_is_what_python_says(target: str) -> None:
    if "Wandb" in target or "MLFlow" in target:
        pytest.skip("an extra")
    found = find_definition(target)
    assert found is not None
    signature = signature_of(*found)
    assert signature is not None
    parameters = inspect.signature(pkgutil.resolve_name(target)).parameters.values()
    named = {p.name: p.default is p.empty for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):  # Python does not say what becomes of them
        assert named.items() <= {name: p.required for name, p in signature.parameters.items()}.items()
    else:
        assert named == {name: p.required for name, p in signature.parameters.items()}
        assert not signature.is_open


def test_readme_s_commands_are_in_order() -> None:
    for line in (ROOT / "README.md").read_text().splitlines():
        goes_on = line.startswith(("python train.py resume=", "python train.py reproduce="))
        if line.startswith("python train.py ") and not goes_on and not {"--help", "-m"} & set(line.split()):
            assert mistakes(*line.replace("<time>", "time").split()[2:]) == []
