"""Interrupted runs are resumed bit for bit; finished runs are extended and reproduced."""

import csv
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from conftest import ROOT, SMALL_RUN, Command, run_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitlab.runs.directory import RunDirectory

RUN = [
    *SMALL_RUN,
    *("trainer.max_epochs=3", "trainer.log_every_n_steps=1", "augment=randaugment"),
    *("model.dropout=0.1", "model.drop_path=0.1", "scheduler=cosine"),
]
TIMES = {"seconds", "images_per_second", "data_wait", "memory_gib", "time_elapsed"}


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def same(one: Any, other: Any, path: str = "") -> None:
    """Asserts that the contents of two checkpoints are equal to the last bit."""
    assert type(one) is type(other), path
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), path
        for key in one:
            if key not in TIMES:
                same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            same(a, b, f"{path}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other, path


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    # TensorBoard orders files by name, which has the second; here several files are of one second.
    found: dict[str, list[tuple[int, float]]] = {}
    for place in (run, run / "val"):
        files = sorted(place.glob("events.*"), key=lambda file: file.stat().st_mtime_ns)
        with TemporaryDirectory() as folder:
            for number, file in enumerate(files):
                (Path(folder) / f"events.out.tfevents.{number:04d}").write_bytes(file.read_bytes())
            events = EventAccumulator(folder).Reload()
        for tag in events.Tags()["scalars"]:
            if tag.rpartition("/")[2] not in TIMES:
                found[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return found


def assert_same_run(run: Path, whole: Path) -> None:
    for name in ("last", "best"):
        one, other = (
            torch.load(r / "checkpoints" / f"{name}.ckpt", map_location="cpu", weights_only=True) for r in (run, whole)
        )
        for checkpoint in (one, other):
            del checkpoint["vitlab_config"]  # names the run directory and what interrupted the run
            for state in checkpoint["callbacks"].values():
                state.pop("current_score", None)  # Lightning does not restore it; nothing depends on it
                for key in ("dirpath", "best_model_path", "kth_best_model_path", "best_k_models", "last_model_path"):
                    state.pop(key, None)
        same(one, other, name)
    assert rows(run) == rows(whole)
    ours, theirs = (json.loads((r / "metrics.json").read_text()) for r in (run, whole))
    assert {k: v for k, v in ours.items() if k not in TIMES} == {k: v for k, v in theirs.items() if k not in TIMES}
    assert curves(run) == curves(whole)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """A forked process has no other threads of torch's, and more threads add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    result = run_here("train.py", *RUN, "hydra.run.dir=run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def stop(hook: str, epoch: int, batch: int | None = None, number: int = signal.SIGTERM) -> list[str]:
    target = [f"+callbacks.stop._target_=stoppers.SendSignal +callbacks.stop.number={int(number)}"]
    target += [f"+callbacks.stop.hook={hook} +callbacks.stop.epoch={epoch}"]
    target += [f"+callbacks.stop.batch={'null' if batch is None else batch}"]
    return " ".join(target).split()


def move(place: list[str]) -> list[str]:
    """Overrides with which a resumed run is stopped elsewhere."""
    return ["trusted_targets=[stoppers.]", *(part.replace("+callbacks.stop", "callbacks.stop", 1) for part in place)]


# Each is stopped, resumed and stopped again, and so on: the last resume has what all stops have left.
@pytest.mark.parametrize(
    "places",
    [
        [
            (stop("on_train_batch_start", 0, 0, signal.SIGUSR1), 143),
            (stop("on_train_batch_start", 1, 2, signal.SIGINT), 130),
            (stop("on_validation_start", 2), 143),  # of the last epoch
        ],
        [
            (stop("on_validation_start", 0, None, signal.SIGHUP), 129),
            (stop("on_train_batch_start", 1, 4), 143),  # the last of an epoch: validation follows
            (stop("on_train_epoch_start", 2), 143),
        ],
    ],
    ids=["in_epochs", "between_epochs"],
)
def test_a_stopped_run_is_resumed_bit_for_bit(
    places: list[tuple[list[str], int]], whole: Path, in_process: Command, tmp_path: Path
) -> None:
    arguments = [*RUN, "hydra.run.dir=run"]
    for number, (place, status) in enumerate(places):
        stopped = in_process("train.py", *arguments, *(move(place) if number else place))
        assert stopped.returncode == status, stopped.stderr
        assert f"python {ROOT / 'train.py'} resume=run 'trusted_targets=[stoppers.]'" in stopped.stdout
        assert ("Resuming demo at epoch" in stopped.stdout) == (number > 0)
        assert "Traceback" not in stopped.stderr
        manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
        assert manifest["status"] == "interrupted"
        arguments = ["resume=run"]
    resumed = in_process("train.py", "resume=run", "callbacks.stop=null")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming demo at epoch" in resumed.stdout
    assert_same_run(tmp_path / "run", whole)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert len(manifest["resumed"]) == len(places)


def test_a_closed_terminal_stops_a_run_unless_nohup_started_it(in_process: Command, tmp_path: Path) -> None:
    hang_up = stop("on_train_batch_start", 0, 2, signal.SIGHUP)
    once_more, resize = (
        [part.replace(".stop.", ".again.") for part in stop("on_train_batch_start", 0, 2, number)]
        for number in (signal.SIGHUP, signal.SIGWINCH)
    )
    short = [*RUN, "trainer.max_epochs=1"]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ignored = in_process("train.py", *short, "hydra.run.dir=ignored", *hang_up, *resize)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        stopped = in_process("train.py", *short, "hydra.run.dir=stopped", *hang_up, *once_more)  # as a shell sends it
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (ignored.returncode, stopped.returncode) == (0, 129), ignored.stderr + stopped.stderr
    assert (tmp_path / "stopped" / "checkpoints" / "last.ckpt").exists()


def status_of_fork(*arguments: str, cwd: Path) -> int:
    """Exit status of a run in a process that is forked here, which saves the seconds of importing torch."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.write(2, run_here("train.py", *arguments, cwd=cwd).stderr.encode())
    finally:
        os._exit(1)


def test_a_run_killed_twice_is_resumed_bit_for_bit(whole: Path, in_process: Command, tmp_path: Path) -> None:
    first = stop("on_validation_end", 0, None, signal.SIGKILL)
    again = move(stop("on_train_batch_end", 1, 1, signal.SIGKILL))
    for arguments in ([*RUN, "hydra.run.dir=run", "checkpoint.every_minutes=0", *first], ["resume=run", *again]):
        assert status_of_fork(*arguments, cwd=tmp_path) == -signal.SIGKILL
    resumed = in_process("train.py", "resume=latest", "outputs=.", "callbacks.stop=null")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "run", whole)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in the second of its three epochs."""
    folder = tmp_path_factory.mktemp("stopped")
    result = run_here("train.py", *RUN, "hydra.run.dir=run", *stop("on_train_batch_start", 1, 2), cwd=folder)
    assert result.returncode == 143, result.stderr
    return folder / "run"


def copy_run(source: Path, folder: Path) -> Path:
    """A copy `folder/run` whose config names its directory, as if it had not been copied."""
    run = Path(shutil.copytree(source, folder / "run"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(source.parent), str(folder)))
    return run


@pytest.fixture
def interrupted(stopped_run: Path, tmp_path: Path) -> Path:
    """Such a run of this test's own."""
    return copy_run(stopped_run, tmp_path)


def contents(run: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != ".lock"}


REFUSED = [
    (["resume=run", "optimizer.lr=0.5"], "optimizer.lr=0.5 (the run has 0.002); init_from=<run> starts a new run"),
    (["resume=run", "optimizer.lrr=0.5"], "unknown key 'optimizer.lrr'. Did you mean 'lr'?"),
    (["resume=run", "model.depth=3", "seed=1"], "seed=1 (the run has 0), model.depth=3 (the run has 2)"),
    (["resume=run"], "the run's config would run stoppers.SendSignal"),
    (["resume=elsewhere"], "resume=elsewhere does not exist"),
    (["resume=latest"], "resume=latest: there is no run to resume below"),
    (["resume=run", "callbacks.stop=null", "checkpoint=nope.ckpt"], "there is no checkpoint nope.ckpt"),
    (["resume=run", "callbacks.stop=null", "data.train_images=300"], "data.train_images=300 (the run has 400)"),
]


def test_wrong_ways_to_resume_are_refused_and_change_nothing(interrupted: Path, in_process: Command) -> None:
    before = contents(interrupted)
    for arguments, message in REFUSED:
        result = in_process("train.py", *arguments)
        assert result.returncode == 2, arguments
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    with RunDirectory(interrupted).locked():
        result = in_process("train.py", "resume=run", "callbacks.stop=null")
        assert result.returncode == 2
        assert "another process is writing to run" in result.stderr
    assert contents(interrupted) == before


def test_a_damaged_checkpoint_is_refused_and_an_older_one_offered(interrupted: Path, in_process: Command) -> None:
    last = interrupted / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1
    for damaged in (bytes(altered), whole[: len(whole) // 2], b""):
        last.write_bytes(damaged)
        result = in_process("train.py", "resume=run", "callbacks.stop=null")
        assert result.returncode == 2
        assert "last.ckpt can't be read as a checkpoint: it is damaged" in result.stderr
        assert "checkpoint=best can be" in result.stderr
        assert last.read_bytes() == damaged
    result = in_process("train.py", "resume=run", "callbacks.stop=null", "checkpoint=best")
    assert result.returncode == 0, result.stderr
    assert [row["epoch"] for row in rows(interrupted)] == ["1", "2", "3"]


def test_a_finished_run_can_be_extended(whole: Path, in_process: Command, tmp_path: Path) -> None:
    first = (copy_run(whole, tmp_path) / "metrics.json").read_bytes()
    refused = in_process("train.py", "resume=run")
    assert refused.returncode == 2
    assert "finished, after 3 epochs and 15 steps: give a larger trainer.max_epochs=... to extend it" in refused.stderr
    longer = in_process("train.py", "resume=run", "trainer.max_epochs=4")
    assert longer.returncode == 0, longer.stderr
    assert "trainer.max_epochs changed: " in longer.stdout
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["1", "2", "3", "4"]
    (aside,) = (tmp_path / "run").glob("metrics_*.json")
    assert aside.read_bytes() == first


def test_a_new_run_starts_from_the_weights_of_another(interrupted: Path, in_process: Command, tmp_path: Path) -> None:
    short = [*RUN, "trainer.max_epochs=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0"]
    for source in ("run", "run/checkpoints/last.ckpt"):
        result = in_process("train.py", *short, f"init_from={source}", f"hydra.run.dir=new_{source[-4:]}")
        assert result.returncode == 0, result.stderr
    for name, folder in (("best", "new_run"), ("last", "new_ckpt")):
        one, other = (
            torch.load(file, weights_only=True)["state_dict"]
            for file in (interrupted / "checkpoints" / f"{name}.ckpt", tmp_path / folder / "checkpoints" / "last.ckpt")
        )
        assert all(torch.allclose(one[key], other[key]) for key in one if key.startswith("network."))
    refused = in_process("train.py", *RUN, "init_from=nowhere", "hydra.run.dir=x")
    assert refused.returncode == 2
    assert "init_from=nowhere does not exist" in refused.stderr


def test_a_run_is_reproduced_and_compared(whole: Path, in_process: Command, tmp_path: Path) -> None:
    before = contents(whole)
    result = in_process("train.py", f"reproduce={whole}", "outputs=again")
    assert result.returncode == 0, result.stderr
    assert contents(whole) == before
    assert_same_run(next((tmp_path / "again" / "demo").iterdir()), whole)
    assert "differs" not in result.stdout
    assert result.stdout.count("the same") >= 6
    (again,) = (tmp_path / "again" / "demo").iterdir()
    assert rows(again) == rows(whole)
    assert (again / "run.log").stat().st_size > 0
    assert "torch" not in result.stderr
    manifest = json.loads((whole / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(whole, elsewhere)
    (elsewhere / "manifest.json").write_text(json.dumps(manifest))
    config = (elsewhere / "config.yaml").read_text()
    (elsewhere / "config.yaml").write_text(config.replace("name: demo", "name: ablation/demo"))
    other = in_process("train.py", "reproduce=elsewhere", "outputs=again", "seed=1", "trainer.max_epochs=1")
    assert "differs" in other.stdout
    assert "Results may differ from those of the other run" in other.stderr
    assert "torch changed from 1.0 to " in other.stderr
    assert len(list((tmp_path / "again" / "ablation" / "demo").iterdir())) == 1
    (text,) = (
        t for file in (tmp_path / "again").rglob("run.log") if "torch changed from 1.0" in (t := file.read_text())
    )
    assert text.index("torch changed from 1.0") < text.index("run directory")


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_a_nan_loss_stops_the_run_or_skips_the_step(action: str, in_process: Command, tmp_path: Path) -> None:
    poison = [
        "+callbacks.poison._target_=stoppers.PoisonBatch",
        "+callbacks.poison.epoch=1",
        "+callbacks.poison.batch=2",
    ]
    result = in_process("train.py", *RUN, *poison, f"callbacks.nan.action={action}", "hydra.run.dir=run")
    if action == "skip":
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        with (tmp_path / "run" / "metrics.csv").open() as file:
            assert [float(row["skipped_steps"]) for row in csv.DictReader(file)] == [0, 1, 0]
        assert "1 steps skipped" in result.stdout or not sys.stdout.isatty()
        return
    assert result.returncode == 2
    assert "NaN or infinite since batch 3 of epoch 2" in result.stderr
    assert "run/checkpoints/last.ckpt" in result.stderr
    assert "init_from=..." in result.stderr
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 5
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


def test_a_hostile_run_can_not_run_code(interrupted: Path, in_process: Command, tmp_path: Path) -> None:
    config = (interrupted / "config.yaml").read_text()
    canary = tmp_path / "canary"
    targets = [
        "subprocess.run",
        "os.system",
        "torch.hub.load",
        "vitlab.files.write_text",
        "torch.load",
        "builtins.exec",
    ]
    for target in targets:
        hostile = config.replace(
            "_target_: vitlab.callbacks.Throughput", f"_target_: {target}\n    args: touch {canary}"
        )
        assert hostile != config
        (interrupted / "config.yaml").write_text(hostile)
        result = in_process("train.py", "resume=run", "callbacks.stop=null")
        assert result.returncode == 2, target
        assert f"the run's config would run {target}" in result.stderr
    (interrupted / "config.yaml").write_text(config)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {canary}",)

    torch.save({"vitlab_config": {}, "state_dict": Evil()}, interrupted / "checkpoints" / "last.ckpt")
    result = in_process("train.py", "resume=run", "callbacks.stop=null")
    assert result.returncode == 2
    assert "can't be read as a checkpoint" in result.stderr
    assert not canary.exists()


def test_a_moved_run_is_resumed_in_its_new_directory(whole: Path, interrupted: Path, in_process: Command) -> None:
    folder = interrupted.parent / "elsewhere"
    interrupted.rename(folder)
    result = in_process("train.py", "resume=elsewhere", "callbacks.stop=null")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert not interrupted.exists()
    assert_same_run(folder, whole)


@pytest.mark.parametrize(
    "length",
    [
        ["trainer.max_steps=8", "trainer.max_epochs=-1"],
        ["trainer.val_check_interval=1", "trainer.max_epochs=2"],
        [
            *("augment=strong", "augment.mixing.p=0.8", "augment.mixing.off_share=0.4", "trainer.max_epochs=2"),
            *("augment.flip.alternating=true", "trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed"),
        ],
    ],
)
def test_runs_of_other_lengths_are_resumed_bit_for_bit(length: list[str], in_process: Command, tmp_path: Path) -> None:
    assert in_process("train.py", *RUN, *length, "hydra.run.dir=whole").returncode == 0
    first, second = stop("on_validation_start", 0), move(stop("on_train_batch_start", 1, 1))
    for arguments, step in (([*RUN, *length, "hydra.run.dir=run", *first], 1), (["resume=run", *second], 7)):
        assert in_process("train.py", *arguments).returncode == 143
        if "trainer.val_check_interval=1" in length:  # saved after the validation of each step
            state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
            assert state["global_step"] == step
    result = in_process("train.py", "resume=run", "callbacks.stop=null")
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_checkpoint_of_a_validation_at_the_end_of_an_epoch_is_resumed(in_process: Command, tmp_path: Path) -> None:
    second = [*RUN, "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2"]
    assert in_process("train.py", *second, "hydra.run.dir=whole").returncode == 0
    stopped = in_process("train.py", *second, "hydra.run.dir=run", *stop("on_train_batch_start", 2, 2))
    assert stopped.returncode == 143, stopped.stderr
    resumed = in_process("train.py", "resume=run", "checkpoint=best", "callbacks.stop=null")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming demo at epoch 2, step 10" in resumed.stdout
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("run", "whole")
    )
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        same(one[key], other[key], key)


def test_a_run_stopped_in_its_final_validation_keeps_its_last_epoch(in_process: Command, tmp_path: Path) -> None:
    steps = [*RUN, "trainer.max_steps=8", "trainer.max_epochs=-1"]  # ends within the second epoch
    assert in_process("train.py", *steps, "hydra.run.dir=whole").returncode == 0
    stopped = in_process("train.py", *steps, "hydra.run.dir=run", *stop("on_validation_start", 1))
    assert stopped.returncode == 143, stopped.stderr
    resumed = in_process("train.py", "resume=run", "callbacks.stop=null")
    assert resumed.returncode == 0, resumed.stderr
    assert [row["step"] for row in rows(tmp_path / "run")] == ["5", "8"]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_early_stopping_has_ended_goes_on_with_more_patience(in_process: Command, tmp_path: Path) -> None:
    early = [*RUN, "callbacks=early_stopping", "callbacks.early_stopping.patience=1", "trainer.max_epochs=6"]
    early += ["optimizer.lr=1e-12", "hydra.run.dir=run"]  # no improvement after the first epoch
    stopped = in_process("train.py", *early, *stop("on_train_epoch_end", 1))
    assert stopped.returncode == 143, stopped.stderr
    for more, epochs in (["callbacks.stop=null"], 2), (["callbacks.early_stopping.patience=3"], 4):
        resumed = in_process("train.py", "resume=run", *more)
        assert resumed.returncode == 0, resumed.stderr
        assert len(rows(tmp_path / "run")) == epochs


def test_ema_weights_and_muon_s_momentum_are_resumed(in_process: Command, tmp_path: Path) -> None:
    recipe = [*RUN, "callbacks=ema", "checkpoint.monitor=val/acc_ema", "optimizer=muon", "trainer.max_epochs=2"]
    assert in_process("train.py", *recipe, "hydra.run.dir=whole").returncode == 0
    stopped = in_process("train.py", *recipe, "hydra.run.dir=run", *stop("on_train_batch_start", 1, 2))
    assert stopped.returncode == 143, stopped.stderr
    resumed = in_process("train.py", "resume=run", "callbacks.stop=null")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert not torch.equal(state["vitlab_ema"]["head.weight"], state["state_dict"]["network.head.weight"])


def test_a_plateau_counts_each_epoch_of_a_resumed_run(in_process: Command, tmp_path: Path) -> None:
    plateau = ["scheduler=plateau", "scheduler.schedule.patience=0", "+scheduler.schedule.eps=0.0"]
    plateau += ["optimizer.lr=1e-12"]  # no improvement after the first epoch
    assert in_process("train.py", *RUN, *plateau, "hydra.run.dir=whole").returncode == 0
    first, second = stop("on_train_epoch_start", 1), move(stop("on_train_batch_start", 1, 2))
    for arguments in ([*RUN, *plateau, "hydra.run.dir=run", *first], ["resume=run", *second]):
        assert in_process("train.py", *arguments).returncode == 143
    resumed = in_process("train.py", "resume=run", "callbacks.stop=null")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    rates = [float(row["lr"]) for row in rows(tmp_path / "run")]
    assert rates == pytest.approx([1e-12, 1e-12, 1e-13], rel=1e-3, abs=0)


def test_a_run_with_a_time_limit_resumes_with_its_remaining_time(in_process: Command, tmp_path: Path) -> None:
    budget = ["scheduler=time_budget", "trainer.max_time=00:00:10:00", "trainer.max_epochs=-1", "logger=none"]
    run, file = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    stopped = in_process("train.py", *RUN, *budget, "hydra.run.dir=run", *stop("on_train_batch_start", 1, 2))
    assert stopped.returncode == 143, stopped.stderr
    state = torch.load(file, weights_only=True)
    assert 0 < state["callbacks"]["TimeLimit"]["time_elapsed"]["train"] < 500
    state["callbacks"]["TimeLimit"]["time_elapsed"]["train"] = 599.999
    torch.save(state, file)
    # Stopped in the validation after the time limit.
    again = ["callbacks.stop.hook=on_validation_start", "callbacks.stop.batch=null", "trusted_targets=[stoppers.]"]
    assert in_process("train.py", "resume=run", *again).returncode == 143
    resumed = in_process("train.py", "resume=run", "callbacks.stop=null")
    assert resumed.returncode == 0, resumed.stderr
    state = torch.load(file, weights_only=True)
    assert 600 <= state["callbacks"]["TimeLimit"]["time_elapsed"]["train"] < 700
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] < 1e-9
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]
    assert rows(run)[-1]["val/acc"]
    over = in_process("train.py", "resume=run")
    assert over.returncode == 2
    assert "give a larger trainer.max_time=... to extend it" in over.stderr


def test_a_requeued_slurm_job_resumes_its_run(
    whole: Path, in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/requeued\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for name, value in {"JOB_ID": "77", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    place = stop("on_train_batch_start", 1, 2, signal.SIGUSR1)
    arguments = [*RUN, *place, "hydra.run.dir=runs/it"]
    run = tmp_path / "runs" / "it"

    # Ended before anything was saved, for example by a node failure.
    RunDirectory(run).create({}, {"job": "77", "command": shlex.join(["python", str(ROOT / "train.py"), *arguments])})
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "folder": str(tmp_path)}))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    warned = in_process("train.py", *arguments)
    assert warned.returncode == 143, warned.stderr
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    assert len(list((tmp_path / "runs").iterdir())) == 2  # the run without a checkpoint was renamed
    assert not list(run.glob("hpc_ckpt*"))  # Lightning's own

    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state["callbacks"]["MetricsCSV"]["seconds"] = 83 * 60
    torch.save(state, run / "checkpoints" / "last.ckpt")
    resumed = in_process("train.py", *arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming demo at epoch 2, step 8" in resumed.stdout
    assert_same_run(run, whole)
    assert len(json.loads((run / "manifest.json").read_text())["resumed"]) == 1
    assert "1:23:" in resumed.stdout  # of both processes

    again = in_process("train.py", *arguments)  # the job script goes on with other commands
    assert again.returncode == 0
    assert again.stdout == "runs/it is finished: nothing is left to do for this job\n"
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    assert "holds a run already" in in_process("train.py", *arguments).stderr  # another job is another run


def test_a_hostile_run_can_not_write_elsewhere(interrupted: Path, in_process: Command, tmp_path: Path) -> None:
    config = (interrupted / "config.yaml").read_text()
    for hostile in (
        config.replace(f"save_dir: {interrupted}", f"save_dir: {tmp_path / 'out'}"),
        config.replace(f"save_dir: {interrupted}", "save_dir: ../out"),
        config.replace(f"save_dir: {interrupted}", f"save_dir: {interrupted}\n    name: ../out"),
        config.replace(
            "_target_: vitlab.callbacks.Throughput", "_target_: vitlab.callbacks.StepProfiler\n    dirpath: x"
        ),
    ):
        assert hostile != config
        (interrupted / "config.yaml").write_text(hostile)
        result = in_process("train.py", "resume=run", "callbacks.stop=null")
        assert result.returncode == 2
        assert "outside of run" in result.stderr
    (interrupted / "config.yaml").write_text(config)

    (tmp_path / "mine").mkdir()
    for name in ("run.log", ".lock", "val", "checkpoints"):
        kept = (interrupted / name).rename(tmp_path / "mine" / name)
        (interrupted / name).symlink_to(kept)
        before = contents(tmp_path / "mine")
        result = in_process("train.py", "resume=run", "callbacks.stop=null")
        assert result.returncode == 2
        assert f"run/{name} is a link to {kept}, outside of the run" in result.stderr
        assert contents(tmp_path / "mine") == before
        (interrupted / name).unlink()
        kept.rename(interrupted / name)
    assert not (tmp_path / "out").exists()
