"""The promised time includes all that a run does: here by hand, with times so long that all others vanish."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from preflight.test_preflight import TINY, subject_of

from vitlab.callbacks import EMA, BestCheckpoint, LastCheckpoint, PatchDropoutStages
from vitlab.preflight import CheckContext, TimeEstimate, run_preflight
from vitlab.preflight.cost_checks import SAVED_PER_SECOND, describe_duration

TRAIN, EVALUATE, FETCH = 3.0, 1.0, 0.5  # seconds per image
STEPS = 45 * 32 * (TRAIN + FETCH)  # of an epoch of 1,440 images
VAL, TEST = 160 * EVALUATE, 100 * EVALUATE


def averaged(context: CheckContext) -> None:
    context.trainer.callbacks.append(EMA(0.9, 9))  # type: ignore[attr-defined]


def saving(context: CheckContext) -> None:
    folder = Path(context.trainer.default_root_dir)
    context.trainer.callbacks += [  # type: ignore[attr-defined]
        BestCheckpoint(folder, "best", monitor="val/acc", mode="max"),
        LastCheckpoint(folder / "last.ckpt", every_n_epochs=5, every_minutes=None),
    ]


@pytest.mark.parametrize(
    ("overrides", "change", "seconds"),
    [
        ([], None, 10 * (STEPS + VAL) + TEST),
        (["trainer.check_val_every_n_epoch=2"], None, 10 * (STEPS + VAL / 2) + TEST),
        (["trainer.val_check_interval=0.25"], None, 10 * (STEPS + 4 * VAL) + TEST),
        (["trainer.val_check_interval=9"], None, 10 * (STEPS + 5 * VAL) + TEST),
        (["trainer.limit_val_batches=0", "trainer.limit_test_batches=0"], None, 10 * STEPS),
        (["trainer.limit_train_batches=0.2", "trainer.max_steps=18"], None, 2 * (STEPS / 5 + VAL) + TEST),
        ([], averaged, 10 * (STEPS + 2 * VAL) + 2 * TEST),
        ([], saving, 10 * (STEPS + VAL + 1.2 * 1000) + TEST),
    ],
)
def test_a_run_s_time_is_that_of_its_parts(
    overrides: list[str], change: object, seconds: float, tmp_path: Path
) -> None:
    subject = subject_of(tmp_path, "trainer.max_epochs=10", *TINY, *overrides)
    if change is not None:
        change(subject)  # type: ignore[operator]
    size = int(1000 * SAVED_PER_SECOND)
    found = describe_duration(subject, size, train=TRAIN, evaluate=EVALUATE, fetch=FETCH)
    match = re.search(r"about (?:(\d+) days?, )?(\d+):(\d\d):(\d\d) in all", found)
    assert match, found
    days, *clock = (int(part or 0) for part in match.groups())
    promised = days * 86400 + clock[0] * 3600 + clock[1] * 60 + clock[2]
    assert promised == pytest.approx(seconds, rel=5e-3)


def test_the_speed_says_that_stages_of_patch_dropout_change_it(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, "trainer.max_epochs=10", *TINY)
    plain = describe_duration(subject, 0, train=TRAIN, evaluate=EVALUATE, fetch=FETCH)
    subject.trainer.callbacks.append(PatchDropoutStages([0.5, 0.0]))  # type: ignore[attr-defined]
    staged = describe_duration(subject, 0, train=TRAIN, evaluate=EVALUATE, fetch=FETCH)
    assert "patch_dropout_stages" in staged
    assert "patch_dropout_stages" not in plain


def test_on_a_cpu_the_steps_of_the_training_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = subject_of(tmp_path, *TINY, "trainer.max_epochs=10", "trainer.limit_val_batches=0")
    subject.times_steps, subject.started = False, 0.0
    assert "time" not in {finding.check for finding in run_preflight(subject).findings}
    estimate, now = (
        TimeEstimate(subject),
        iter([0.0, *range(60, 200)]),
    )  # the first step takes a minute, others a second
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    assert not hasattr(estimate.context, "network")  # the copies are not kept
    subject.trainer.callbacks.append(estimate)  # type: ignore[attr-defined]
    for _ in range(5):
        estimate.on_train_batch_start(
            SimpleNamespace(optimizers=[subject.recipe.optimizer], callbacks=[]), subject.classifier
        )  # type: ignore[arg-type]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("32 training images per second: about 0:08:")  # 450 steps and what came before
