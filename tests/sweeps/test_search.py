"""Test searches with a fake train.py whose best learning rate is 1e-3."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from conftest import Command
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from sweeps.fake_sweep import (
    FAKE,
    LR,
    POLL_SECONDS,
    START,
    fake_processes,
    make_sweep,
    search,
    study_of,
    wait_for,
)

from hydra_plugins.vitlab.sweepers import check_duration
from vitlab.errors import UserError
from vitlab.sweeps.executors import LocalExecutor
from vitlab.sweeps.runner import run_grid
from vitlab.sweeps.search import Parameter, Search, open_storage, parameter_importance, read_space, run_search
from vitlab.sweeps.sweep import Job, read_record
from vitlab.sweeps.sweep_guard import covering_jobs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0.1,0.9)", FloatDistribution(0.1, 0.9)),
        ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("range(2,9,2)", IntDistribution(2, 8, step=2)),
        ("range(4)", IntDistribution(0, 3)),
        ("choice(none,basic)", CategoricalDistribution(["none", "basic"])),
        ("none,basic", CategoricalDistribution(["none", "basic"])),
        ("range(0.5,2.0,0.5)", CategoricalDistribution(["0.5", "1.0", "1.5"])),
    ],
)
def test_search_spaces_use_hydra_s_sweep_grammar(text: str, expected: BaseDistribution) -> None:
    assert read_space({"key": text}, [], {}).parameters == [Parameter("key", expected)]
    assert read_space({}, [f"key={text}"], {}).parameters == [Parameter("key", expected)]


def test_the_command_line_overrides_the_file() -> None:
    space = read_space({"a": "1,2", "b": "1,2"}, ["b=3", "c=4"], {})
    assert [parameter.key for parameter in space.parameters] == ["a"]
    assert space.fixed == ["b=3", "c=4"]


def test_a_key_can_depend_on_another_one() -> None:
    space = read_space({"optimizer": "adamw,sgd"}, [], {"optimizer=sgd": {"optimizer.momentum": "interval(0.8,0.99)"}})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [space.suggest(study.ask()) for _ in range(20)]
    with_momentum = [t for t in trials if any(o.startswith("optimizer.momentum=") for o in t)]
    assert with_momentum == [t for t in trials if "optimizer=sgd" in t]
    assert 0 < len(with_momentum) < 20


def test_a_key_can_have_other_values_with_another_condition() -> None:
    when = {"optimizer=adamw": {"optimizer.lr": "interval(0.1,0.2)"}, "optimizer=sgd": {"optimizer.lr": "1.0,2.0"}}
    space = read_space({"optimizer": "adamw,sgd"}, [], when)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        optimizer, rate = (o.partition("=")[2] for o in space.suggest(trial))
        assert 0.1 <= float(rate) <= 0.2 if optimizer == "adamw" else rate in ("1.0", "2.0")
        study.tell(trial, 0.0)


def test_a_key_of_the_command_line_replaces_that_of_the_file_whatever_its_prefix() -> None:
    params, when = {"model.lr": "1,2", "model.pool": "cls,mean"}, {"model.pool=cls": {"model.depth": "1,2"}}
    space = read_space(params, ["++model.lr=3", "+model.depth=9"], when)
    assert space.fixed == ["++model.lr=3", "+model.depth=9"]
    assert [parameter.key for parameter in space.parameters] == ["model.pool"]
    jobs = covering_jobs(params, when, ["++model.lr=3", "+model.depth=9"])
    assert all({"++model.lr=3", "+model.depth=9"} <= {*job} and len(job) == 3 for job in jobs)


@pytest.mark.parametrize(
    ("condition", "given", "holds"),
    [
        ("a=true", "a=True", True),
        ("a=1e-3", "a=0.001", True),
        ("a='x'", "++a=x", True),
        ("a=1", "a=true", False),
        ("a=1", "b=1", False),
    ],
)
def test_a_condition_holds_by_its_value(condition: str, given: str, holds: bool) -> None:
    space = read_space({"c": "1,2"}, [given], {condition: {"d": "0.5"}})
    overrides = space.suggest(optuna.create_study().ask())
    assert ("d=0.5" in overrides) == holds


@pytest.mark.parametrize("text", ["tag(log,interval(0.0,1.0))", "interval(2.0,1.0)"])
def test_an_empty_interval_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match=r"key=.* there is no interval to choose from"):
        read_space({"key": text}, [], {})


def test_a_search_without_choices_is_an_error() -> None:
    with pytest.raises(UserError, match="a search needs a key with several values"):
        read_space({}, ["seed=0"], {})


def test_each_value_and_each_end_of_a_search_is_checked() -> None:
    jobs = covering_jobs({"a": "interval(0.1,0.9)", "b": "x,y,z"}, {"b=z": {"c": "1,2"}}, ["d=5"])
    assert [o for o in ("a=0.1", "a=0.9", "b=x", "b=y", "b=z") if not any(o in job for job in jobs)] == []
    assert all("d=5" in job for job in jobs)
    assert {job[-1] for job in jobs if any(o.startswith("c=") for o in job)} == {"c=1", "c=2"}
    assert all("b=z" in job for job in jobs if "c=1" in job or "c=2" in job)


NEITHER = optuna.samplers.RandomSampler(seed=0), optuna.pruners.NopPruner()


@pytest.fixture(autouse=True)
def _arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr("vitlab.sweeps.runner.POLL_SECONDS", POLL_SECONDS)


def test_a_search_finds_the_optimum_and_continues_with_more_trials(tmp_path: Path) -> None:
    study = search(tmp_path, 6)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
    study = search(tmp_path, 12)
    assert len(study.trials) == 12
    rates = [trial.params["optimizer.lr"] for trial in study.trials]
    assert len(set(rates)) == 12  # the sampler did not begin anew
    assert 2e-4 < study.best_trial.params["optimizer.lr"] < 5e-3
    jobs = read_record(tmp_path)["jobs"]
    assert [job["number"] for job in jobs] == list(range(12))
    assert jobs[3]["overrides"] == ["seed=0", f"optimizer.lr={rates[3]!r}"]  # with all its digits
    assert parameter_importance(tmp_path) == {"optimizer.lr": 1.0}


def test_the_jobs_of_an_earlier_start_are_shown_as_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (rate,) = (trial.params["optimizer.lr"] for trial in search(tmp_path, 1).trials)
    shown: list[Job] = []
    monkeypatch.setattr("vitlab.sweeps.search.run_jobs", lambda _, __, source, ___: shown.extend(source.jobs))
    sweep = make_sweep(tmp_path)
    compose = sweep.compose
    sweep.compose = lambda o: OmegaConf.merge(compose(o), {"checkpoint": {"monitor": "val/f1"}})
    optuna.load_study(study_name="search", storage=open_storage(tmp_path)).set_user_attr("monitor", "val/f1 max")
    sampler = optuna.samplers.RandomSampler()  # of its own: a continued search seeds it anew
    run_search(sweep, LocalExecutor(1, [], 1), read_space(LR, ["seed=0"], {}), 2, sampler, NEITHER[1])
    assert [(job.monitor, job.name) for job in shown] == [("val/f1", f"optimizer.lr={rate:.4g}")]


def test_no_trial_starts_that_would_end_after_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr("vitlab.sweeps.search.time", SimpleNamespace(time=lambda: clock.now))
    study = optuna.create_study(storage=open_storage(tmp_path), study_name="search")
    source = Search(make_sweep(tmp_path), study, read_space(LR, ["seed=0"], {}), 100, seconds=300)
    for seconds in (60, 100, 40):  # 200 of 300 are over, and the longest took 100
        job = source.next()
        assert job is not None
        job.started, job.status = clock.now, "failed"
        clock.now += seconds
        source.record_end(job)
    assert source.next() is None
    source.longest = 99
    assert source.next() is not None


def test_a_duration_is_days_hours_minutes_seconds() -> None:
    assert check_duration("key", "1:02:03:04") == 93784.0
    assert check_duration("key", None) == math.inf
    for wrong in ("8h", "00:00:00:00"):
        with pytest.raises(UserError, match=f"key={wrong} must be DD:HH:MM:SS"):
            check_duration("key", wrong)


@pytest.mark.parametrize("epochs", ["-1", "null"])
def test_hyperband_is_refused_for_runs_without_a_number_of_epochs(epochs: str, in_process: Command) -> None:
    timed = [f"trainer.max_epochs={epochs}", "trainer.max_time=00:00:01:00", "scheduler=time_budget"]
    search = ["hydra/sweeper=optuna", "hydra/sweeper/pruner=hyperband", "optimizer.lr=1e-3,1e-4"]
    result = in_process("train.py", "-m", "data=synthetic", *timed, *search)
    assert result.returncode == 2
    assert f"max_resource={epochs}" in result.stderr
    assert "trainer.max_epochs" in result.stderr


def test_bad_trials_are_pruned_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.sweeps.runner.PRUNING_SECONDS", 0)
    should_prune = Search.should_prune

    def and_let_others_go_on(self: Search, job: Job) -> bool:
        hopeless = should_prune(self, job)
        if not hopeless and self.study.trials[job.number].intermediate_values:
            (job.folder / "go").touch()
        return hopeless

    monkeypatch.setattr(Search, "should_prune", and_let_others_go_on)
    study = search(tmp_path, 6, "+hold=go", pruner=optuna.pruners.ThresholdPruner(lower=0.69))
    pruned = [trial.number for trial in study.trials if trial.state == TrialState.PRUNED]
    hopeless = [t.number for t in study.trials if t.intermediate_values.get(0, 1) < 0.69]
    assert pruned == hopeless
    assert pruned
    jobs = {job["number"]: job for job in read_record(tmp_path)["jobs"]}
    assert all(jobs[number]["status"] == "pruned" for number in pruned)
    assert all(job["status"] == "done" for number, job in jobs.items() if number not in pruned)


def test_failed_trials_are_repeated_at_the_next_start(tmp_path: Path) -> None:
    for trials in (2, 4):
        with pytest.raises(SystemExit):
            search(tmp_path, 2, "+act=raise")
        assert [trial.state for trial in study_of(tmp_path).trials] == [TrialState.FAIL] * trials
    rates = [trial.params["optimizer.lr"] for trial in study_of(tmp_path).trials]
    assert rates[:2] == rates[2:]


def test_a_folder_holds_only_one_search(tmp_path: Path) -> None:
    search(tmp_path, 1)
    with pytest.raises(UserError, match=r"holds another search, whose overrides is \['seed=0'\], not "):
        search(tmp_path, 2, "+act=ok")
    sys.argv = [str(FAKE), "-m"]
    other = read_space({"optimizer.lr": "0.1,0.2"}, ["seed=0"], {})
    with pytest.raises(UserError, match="holds another search, whose space is"):
        run_search(make_sweep(tmp_path), LocalExecutor(1, [], 1), other, 2, *NEITHER)
    run_grid(make_sweep(tmp_path / "grid"), LocalExecutor(1, [], 1), [["optimizer.lr=0.1", "seed=0"]])
    with pytest.raises(UserError, match="holds a sweep without a search"):
        search(tmp_path / "grid", 2)
    assert (tmp_path / "grid" / "0" / "metrics.json").exists()


def test_a_trial_with_known_settings_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sys.argv = [str(FAKE), "-m"]
    space = read_space({"optimizer.lr": "0.1,0.01"}, ["seed=0"], {})
    run_search(make_sweep(tmp_path), LocalExecutor(1, [], 1), space, 6, *NEITHER)
    assert len(study_of(tmp_path).trials) == 6
    assert len(list(tmp_path.glob("*/manifest.json"))) == 2
    assert "repeats trial 0" in capsys.readouterr().out


def test_a_trial_with_the_settings_of_a_pruned_one_counts_as_pruned(tmp_path: Path) -> None:
    sys.argv = [str(FAKE), "-m"]
    space = read_space({"optimizer.lr": "0.1,0.01"}, ["seed=0"], {})
    run_search(make_sweep(tmp_path), LocalExecutor(1, [], 1), space, 1, *NEITHER)
    study = study_of(tmp_path)
    (first,) = study.trials
    other = {"0.1": "0.01", "0.01": "0.1"}[first.params["optimizer.lr"]]
    settings: dict[str, Any] = {"params": {"optimizer.lr": other}, "distributions": first.distributions}
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={0: 0.5}, **settings))
    study.enqueue_trial({"optimizer.lr": other})
    run_search(make_sweep(tmp_path), LocalExecutor(1, [], 1), space, 3, *NEITHER)
    assert [trial.state for trial in study_of(tmp_path).trials[1:]] == [TrialState.PRUNED] * 2
    assert len(list(tmp_path.glob("*/manifest.json"))) == 1


def test_a_search_whose_failed_trial_was_repeated_ends_well(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    with pytest.raises(SystemExit):
        search(tmp_path / "search", 1, f"+raise_if={broken}")
    broken.unlink()
    study = search(tmp_path / "search", 1, f"+raise_if={broken}")
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    jobs = read_record(tmp_path / "search")["jobs"]
    assert [job["status"] for job in jobs] == ["failed", "done"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_search_resumes(tmp_path: Path) -> None:
    folder, go = tmp_path / "search", tmp_path / "go"
    go.touch()
    search(folder, 2, f"+hold={go}")
    go.unlink()
    code = f"{START}search(Path({str(folder)!r}), 6, '+hold={go}')\n"
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: all((folder / trial / "checkpoints" / "last.ckpt").exists() for trial in "23"))
    for pid in [process.pid, *fake_processes(folder)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    before = {trial.number: trial.params for trial in study_of(folder).trials}
    assert len(before) == 4
    go.touch()
    study = search(folder, 6, f"+hold={go}")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
    assert {number: study.trials[number].params for number in before} == before
