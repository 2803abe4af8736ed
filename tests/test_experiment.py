"""Training runs, from the command line to the run directory."""

import csv
import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, SMALL_RUN, Command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitlab.runs.checkpoint import read_checkpoint

QUICK = [*SMALL_RUN, "data.train_images=80", "data.test_images=20", "trainer.max_epochs=1"]  # one step


def only_run(folder: Path, name: str = "demo") -> Path:
    (run,) = (folder / "outputs" / name).iterdir()
    return run


def metrics_of(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.json").read_text())


def test_the_run_directory_has_its_files(small_run: Path) -> None:
    there = {p.name for p in small_run.iterdir()}
    files = "config.yaml manifest.json metrics.csv metrics.json run.log checkpoints val figures .hydra"
    assert set(files.split()) <= there
    assert {p.name for p in (small_run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}

    manifest = json.loads((small_run / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["command"].startswith("python ")
    assert "experiment=demo" in manifest["command"]
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert manifest["data"]["test"]["images"] == 103
    assert manifest["seed"] == 0
    assert manifest["started"] < manifest["finished"]

    config = yaml.safe_load((small_run / "config.yaml").read_text())
    assert "${" not in (small_run / "config.yaml").read_text()
    assert config["trainer"]["precision"] in ("bf16-mixed", "16-mixed", "32-true")
    assert len(config["data"]["mean"]) == 3
    assert config["model"]["num_classes"] == len(config["data"]["classes"]) == 10


def test_metrics_of_epochs_and_of_the_run(small_run: Path) -> None:
    rows = list(csv.DictReader((small_run / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["5", "10"]  # 360 training images, 64 a batch
    columns = ["train/loss", "train/acc", "val/loss", "val/acc", "lr", "images_per_second", "data_wait", "memory_gib"]
    assert all(float(row[column]) > 0 for row in rows for column in columns)
    assert all(float(row["data_wait"]) < 1 for row in rows)
    final = metrics_of(small_run)
    best = max(rows, key=lambda row: float(row["val/acc"]))
    assert final["val/acc"] == float(best["val/acc"])
    assert final["epoch"] == int(best["epoch"])
    assert 0 <= final["test/acc"] <= 1
    assert round(final["test/acc"] * 103) == pytest.approx(final["test/acc"] * 103, abs=1e-4)
    assert all(len(cell) <= 14 for row in rows for cell in row.values())  # 0.956, not 0.9559999704360962


def test_tensorboard_has_curves_and_config(small_run: Path) -> None:
    events, validation = (EventAccumulator(str(folder)).Reload() for folder in (small_run, small_run / "val"))
    groups: dict[str, set[str]] = {}
    for tag in [*events.Tags()["scalars"], *events.Tags()["images"], *validation.Tags()["scalars"]]:
        group, _, name = tag.partition("/")
        groups.setdefault(group, set()).add(name)
    assert sorted(groups) == ["train", "val", "val-best", "view", "weights", "workload"]  # the first two are open
    assert groups["train"] == {"acc", "loss", "loss_step", "lr"}
    assert {"acc", "loss"} <= groups["val"]
    assert {"images_per_second", "data_wait", "memory_gib"} <= groups["workload"]
    assert len(validation.Scalars("val/acc")) == 2
    (text,) = events.Tensors("config/text_summary")
    assert b"_target_: vitlab.models.VisionTransformer" in text.tensor_proto.string_val[0]


def test_the_terminal_shows_results_and_next_commands_and_nothing_else(small_run: Path) -> None:
    folder = small_run.parents[2]
    output = (folder / "stdout").read_text()
    assert (folder / "stderr").read_text() == ""
    run = small_run.relative_to(folder)
    for line in (
        f"run directory: {run}",
        f"python {ROOT / 'evaluate.py'} run={run}",
        f"python {ROOT / 'predict.py'} run={run} images=photos/",
    ):
        assert line in output
    assert "warn" not in output.lower()
    epochs = [line.split() for line in output.splitlines() if re.match(r" +[12]/2 ", line)]
    assert [line[0] for line in epochs] == ["1/2", "2/2"]
    assert max(map(len, output.splitlines()[:8])) <= 80
    log = [line[28:] for line in (small_run / "run.log").read_text().splitlines()]
    assert log == [line.rstrip() for line in output.splitlines()]  # what the terminal showed, and nothing else


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(
    in_process: Command, small_run: Path, tmp_path: Path
) -> None:
    for name, choices in (("again", ["seed=0"]), ("other", ["seed=1", "trainer.max_epochs=1"])):
        result = in_process("train.py", *SMALL_RUN, f"hydra.run.dir={name}", *choices)
        assert result.returncode == 0, result.stderr
    first, again = weights_of(small_run), weights_of(tmp_path / "again")
    assert all(torch.equal(first[key], again[key]) for key in first)
    losses = [
        next(csv.DictReader((run / "metrics.csv").open()))["train/loss"] for run in (small_run, tmp_path / "other")
    ]
    assert losses[0] != losses[1]
    ours, theirs = metrics_of(small_run), metrics_of(tmp_path / "again")
    for key in ours:
        assert key in ("seconds", "images_per_second", "data_wait", "memory_gib") or ours[key] == theirs[key]


def test_a_second_run_in_the_same_directory_is_refused(in_process: Command, small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run", symlinks=True)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    result = in_process("train.py", *SMALL_RUN, "hydra.run.dir=run")
    assert result.returncode == 2
    assert "holds a run already" in result.stderr
    assert all(p.read_bytes() == content for p, content in before.items())


@pytest.mark.parametrize(
    ("sent", "status"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_an_interrupted_run_keeps_its_last_state(sent: signal.Signals, status: int, tmp_path: Path) -> None:
    arguments = [*SMALL_RUN, "trainer.max_epochs=10000", "hydra.run.dir=run"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Interrupted. The state is saved in run/checkpoints/last.ckpt." in output
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"
    assert not (tmp_path / "run" / "metrics.json").exists()
    last = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert last["global_step"] >= int(rows[-1]["step"]) > 0


def test_without_validation_the_last_epoch_is_tested(in_process: Command, tmp_path: Path) -> None:
    result = in_process("train.py", *SMALL_RUN, "data.val_size=0", "preflight=strict")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "data.val_size=0: no validation, so no epoch is selected" in result.stdout
    run = only_run(tmp_path)
    assert json.loads((run / "manifest.json").read_text())["data"]["train"]["images"] == 400
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert "val/acc" not in metrics_of(run)
    assert metrics_of(run)["epoch"] == 2
    assert in_process("evaluate.py", "run=latest").returncode == 0
    refusal = in_process("evaluate.py", "run=latest", "split=val")
    assert refusal.returncode == 2
    assert "no validation images" in refusal.stderr


MY_NET = """
import torch

class MyNet(torch.nn.Module):
    def __init__(self, num_classes, image_size, hidden=16):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(3 * image_size**2, hidden), torch.nn.Linear(hidden, num_classes))

    def forward(self, images):
        return self.layers(images)
"""


def test_a_model_of_the_user_trains_evaluates_and_predicts(
    in_process: Command, tmp_path: Path, image_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mypackage.py").write_text(MY_NET)
    monkeypatch.syspath_prepend(tmp_path)
    demo = [a for a in SMALL_RUN if not a.startswith(("model.", "preflight="))]
    started = time.perf_counter()
    result = in_process("train.py", *demo, "model._target_=mypackage.MyNet", "+model.hidden=24")
    assert result.returncode == 0, result.stderr
    (metrics,) = (tmp_path / "outputs").rglob("metrics.json")
    assert 0 < json.loads(metrics.read_text())["seconds"] <= time.perf_counter() - started
    assert "'trusted_targets=[mypackage.]' images=photos/" in result.stdout
    config = yaml.safe_load((only_run(tmp_path) / "config.yaml").read_text())
    assert config["model"] == {
        "_target_": "mypackage.MyNet",
        "image_size": 32,
        "num_classes": 10,
        "weights": None,
        "hidden": 24,
    }

    refusal = in_process("evaluate.py", "run=latest")
    assert refusal.returncode == 2
    assert "add 'trusted_targets=[mypackage.]'" in refusal.stderr
    trust = "trusted_targets=[mypackage.]"
    assert in_process("evaluate.py", "run=latest", trust).returncode == 0
    assert in_process("predict.py", "run=latest", f"images={image_root}/test/ant", trust).returncode == 0

    refusal = in_process("train.py", *demo, "model._target_=mypackage.MyNet", "+model.hiden=24")
    assert refusal.returncode == 2
    assert "unknown key 'model.hiden'. Did you mean 'hidden'?" in refusal.stderr


@pytest.mark.slow  # torch.compile builds C++ for most of a minute
def test_a_compiled_run_leaves_an_ordinary_checkpoint(command: Command, in_process: Command, tmp_path: Path) -> None:
    result = command("train.py", *SMALL_RUN, "compile=true", "model.depth=1", "trainer.max_epochs=1")
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path)
    assert not any("_orig_mod" in key for key in weights_of(run))
    evaluated = in_process("evaluate.py", "run=latest", "compile=false")
    assert evaluated.returncode == 0, evaluated.stderr
    loss = json.loads((run / "evaluation_test.json").read_text())["test/loss"]
    assert loss == pytest.approx(metrics_of(run)["test/loss"], rel=1e-2)  # other kernels, in bfloat16


def test_rare_options_work_together(in_process: Command, tmp_path: Path) -> None:
    knobs = (
        "trainer.enable_progress_bar=false trainer.check_val_every_n_epoch=2 trainer.precision=bf16-true callbacks=ema "
        "gradient_checkpointing=true"
    )
    more = (
        "augment.flip=null trainer.accumulate_grad_batches=2 scheduler.interval=epoch checkpoint.last_every_n_epochs=2"
    )
    result = in_process(
        "train.py", *SMALL_RUN, *knobs.split(), *more.split(), "trainer.max_epochs=3", "preflight=strict"
    )
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path)
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [bool(row["val/acc"]) for row in rows] == [False, True, True]  # every second epoch, and the last
    assert [row["step"] for row in rows] == ["3", "6", "9"]
    assert metrics_of(run)["epoch"] == 2
    assert "epoch" not in result.stdout.split("run directory")[1].splitlines()[1]
    evaluated = in_process("evaluate.py", "run=latest")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((run / "evaluation_test.json").read_text())["test/loss"] == metrics_of(run)["test/loss"]


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (["trainer.max_epochs=-1", "trainer.max_time=00:00:00:05"], "set trainer.max_epochs or max_steps"),
        (["callbacks=early_stopping", "data.val_size=0"], "callbacks.early_stopping follows val/acc"),
        (["scheduler=plateau", "data.val_size=0"], "scheduler follows val/acc"),
        (["data.batch_size=401"], "batch_size=401 is more than the 360 training images"),
        (["trainer.val_check_interval=6"], "take fewer, or trainer.check_val_every_n_epoch=null"),
    ],
)
def test_contradictory_choices_are_refused(choices: list[str], sentence: str, in_process: Command) -> None:
    result = in_process("train.py", *SMALL_RUN, *choices)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_bug_in_the_user_s_model_is_shown_with_its_traceback(command: Command, tmp_path: Path) -> None:
    (tmp_path / "buggy.py").write_text(MY_NET.replace("Flatten()", "Flattne()"))
    result = command("train.py", *SMALL_RUN[:3], "model._target_=buggy.MyNet", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "Flattne" in result.stderr


def test_debug_fast_runs_every_stage(in_process: Command, tmp_path: Path) -> None:
    result = in_process("train.py", *SMALL_RUN, "debug=fast", "trainer.max_epochs=1", "preflight=strict")
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path, "debug_fast")
    assert [row["step"] for row in csv.DictReader((run / "metrics.csv").open())] == ["2"]
    assert "test/acc" in metrics_of(run)


def test_debug_overfit_brings_the_loss_of_one_batch_near_zero(in_process: Command, tmp_path: Path) -> None:
    choices = ["trainer.max_epochs=40", "data.batch_size=8", "optimizer.lr=1e-2"]
    result = in_process("train.py", *SMALL_RUN, "debug=overfit", "checkpoint.last_every_n_epochs=20", *choices)
    assert result.returncode == 0, result.stderr
    final = metrics_of(only_run(tmp_path, "debug_overfit"))
    assert final["train/loss"] < 0.02
    assert final["train/acc"] == 1.0
    evaluated = in_process("evaluate.py", "run=latest")  # as the run's last lines say
    assert evaluated.returncode == 0, evaluated.stderr


def test_debug_profile_reports_the_time_of_each_stage(in_process: Command, tmp_path: Path) -> None:
    short = ["trainer.profiler.schedule.warmup=1", "trainer.profiler.schedule.active=2"]
    result = in_process("train.py", *SMALL_RUN, "debug=profile", *short, "preflight=strict")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "stage (mean of 2 steps)" in result.stdout
    milliseconds = {name: float(value) for name, value in re.findall(r"│ (\S.*?) +│ +([\d.]+) │", result.stdout)}
    assert milliseconds["forward pass, loss, metrics"] > milliseconds["data: fetch the batch"] > 0
    assert milliseconds["Lightning, callbacks, logging"] > 0
    operations = [name for name in milliseconds if name.startswith("aten::")]
    assert operations
    assert not [name for name in milliseconds if "Profiler" in name or "[pl]" in name]
    folder = only_run(tmp_path, "debug_profile") / "profile"
    listed = (folder / "fit-operations.txt").read_text()
    assert all(name.removesuffix("…") in listed for name in operations)  # a terminal cuts long names
    assert sorted(file.name for file in folder.iterdir()) == ["fit-operations.txt", "trace.json.gz"]
    assert "profile/trace.json.gz (at https://ui.perfetto.dev" in result.stdout.replace("\n", " ")
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]  # "complete" ones
    assert all({"name", "ts", "dur", "pid", "tid"} <= event.keys() for event in events)
    assert [event["name"] for event in events if event["name"].startswith("ProfilerStep#")] == [
        f"ProfilerStep#{step}"
        for step in range(2, 4)  # after one of waiting and one of warm-up
    ]
    nested = ["forward pass, loss, metrics", "backward pass", "clip the gradients"]
    spent = dict.fromkeys([*nested, "optimizer"], 0.0)
    for event in events:
        if event["name"] in spent:
            spent[event["name"]] += event["dur"] / 1000 / 2
    # Nested stages are not counted twice: the backward pass runs inside the optimizer's step.
    assert milliseconds["optimizer"] == pytest.approx(spent["optimizer"] - sum(map(spent.get, nested)), abs=0.02)
    assert milliseconds["backward pass"] == pytest.approx(spent["backward pass"], abs=0.02)
    assert milliseconds["optimizer"] > 0
    too_few = in_process("train.py", *QUICK, "debug=profile", "trainer.profiler.schedule.wait=20")
    assert too_few.returncode == 0
    assert "profile: too few steps" in too_few.stderr


@pytest.mark.parametrize("logger", ["logger=csv", "logger=none", "logger=null", "~logger", "logger=[tensorboard,csv]"])
def test_a_run_has_any_number_of_loggers(logger: str, in_process: Command, tmp_path: Path) -> None:
    result = in_process("train.py", *QUICK, logger)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path)
    assert any(run.glob("events.out.tfevents.*")) == any(run.glob("val/*")) == ("tensorboard" in logger)
    assert (run / "csv" / "metrics.csv").exists() == ("csv" in logger)
    assert (run / "metrics.csv").exists()


def test_loggers_by_name_in_a_file_of_one_s_own_are_resumed(in_process: Command, tmp_path: Path) -> None:
    (tmp_path / "conf" / "logger").mkdir(parents=True)
    csv_logger = "_target_: pytorch_lightning.loggers.CSVLogger\n  save_dir: ${run_dir}\n  name: ''\n  version:"
    (tmp_path / "conf" / "logger" / "mine.yaml").write_text(
        f"one:\n  {csv_logger} first\ntwo:\n  {csv_logger} second\n"
    )
    assert (
        in_process("train.py", "--config-dir=conf", *QUICK, "hydra.run.dir=run", "logger=[mine,tensorboard]").returncode
        == 0
    )
    result = in_process("train.py", "resume=run", "trainer.max_epochs=2", "logger.two=null")
    assert result.returncode == 0, result.stderr
    assert {file.parent.name for file in (tmp_path / "run").glob("*/metrics.csv")} >= {"first", "second"}
    assert len(list((tmp_path / "run").glob("first_from_step_*/metrics.csv"))) == 1
    assert not list((tmp_path / "run").glob("second_from_step_*"))
    other = in_process("train.py", "resume=run", "trainer.max_epochs=3", "logger=[tensorboard,csv]")
    assert other.returncode == 0, other.stderr
    assert list((tmp_path / "run").glob("csv_from_step_*/metrics.csv"))


@pytest.mark.parametrize(
    ("validations", "rates"),
    [
        # No improvement by a metric that does not change: a drop after the second validation.
        (["trainer.check_val_every_n_epoch=2"], [1.0, 1.0, 1.0, 1.0, 0.1, 0.1]),
        (["trainer.check_val_every_n_epoch=1"], [1.0, 1.0, 0.1, 0.01, 0.001, 0.0001]),
        (["trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=9"], [1.0] * 6),  # never
    ],
)
def test_plateau_acts_after_each_validation(
    validations: list[str], rates: list[float], in_process: Command, tmp_path: Path
) -> None:
    plateau = ["scheduler=plateau", "scheduler.schedule.patience=0", "+scheduler.schedule.eps=0.0"]
    plateau += ["optimizer.lr=1e-12", "trainer.max_epochs=6"]
    result = in_process("train.py", *QUICK, *plateau, *validations, "logger=none")
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader((only_run(tmp_path) / "metrics.csv").open()))
    assert [float(row["lr"]) for row in rows] == pytest.approx([1e-12 * rate for rate in rates], rel=1e-3, abs=0)


def test_a_metric_that_nobody_logs_is_told(in_process: Command) -> None:
    other = [
        "callbacks=early_stopping",
        "callbacks.early_stopping.monitor=my/metric",
        "callbacks.early_stopping.mode=max",
    ]
    result = in_process("train.py", *QUICK, *other)
    assert result.returncode == 2
    assert "my/metric" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_early_stopping_and_plateau_follow_the_validation(in_process: Command, tmp_path: Path) -> None:
    choices = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "scheduler=plateau"]
    result = in_process("train.py", *QUICK, *choices, "optimizer.lr=1e-9", "trainer.max_epochs=20")
    assert result.returncode == 0, result.stderr
    assert len(list(csv.DictReader((only_run(tmp_path) / "metrics.csv").open()))) < 20
