"""What a config leaves open is decided for the machine, here one with a GPU that is not there."""

from pathlib import Path

import pytest
from config.test_compose import composed

from vitlab.config.resolve import resolve_machine
from vitlab.errors import UserError


def resolved(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, best: str = "bf16-mixed"
) -> tuple[object, object]:
    for name, answer in (("has_cuda", True), ("has_gpu", True), ("best_precision", best)):
        monkeypatch.setattr(f"vitlab.models.execution.{name}", lambda *_, answer=answer: answer)
    monkeypatch.setattr("vitlab.config.gpus.check_gpus", lambda *_: None)
    config = composed(folder, *overrides)
    resolve_machine(config)
    return config.optimizer.get("fused"), config.trainer.precision


@pytest.mark.parametrize(
    ("overrides", "best", "expected"),
    [
        ([], "bf16-mixed", (True, "bf16-mixed")),
        (["optimizer=sgd"], "bf16-mixed", (True, "bf16-mixed")),
        (["optimizer=muon"], "bf16-mixed", (None, "bf16-mixed")),
        (["+optimizer.fused=false"], "bf16-mixed", (False, "bf16-mixed")),
        ([], "16-mixed", (None, "16-mixed")),  # the gradient scaler unscales before the clipping
        (["trainer.precision=32-true"], "16-mixed", (True, "32-true")),
        (["trainer=fsdp"], "16-mixed", (True, "32-true")),  # Lightning refuses 16-mixed for sharded models
        (["trainer=fsdp"], "bf16-mixed", (True, "bf16-mixed")),
    ],
    ids=str,
)
def test_fused_optimizer_and_precision_on_a_gpu(
    overrides: list[str], best: str, expected: tuple[object, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolved(tmp_path, monkeypatch, *overrides, best=best) == expected


def test_a_fused_optimizer_with_a_scaler_and_clipping_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled = ["+optimizer.fused=true", "trainer.gradient_clip_val=1.0"]
    with pytest.raises(UserError, match=r"optimizer\.fused=true"):
        resolved(tmp_path, monkeypatch, *scaled, best="16-mixed")
    assert resolved(tmp_path, monkeypatch, scaled[0], "trainer.gradient_clip_val=null", best="16-mixed")[0] is True


def test_nothing_is_fused_on_a_cpu(tmp_path: Path) -> None:
    config = composed(tmp_path, "trainer=cpu")
    resolve_machine(config)
    assert "fused" not in config.optimizer


def test_a_cpu_does_not_train_in_float16(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.precision=16-mixed: a CPU does not train in float16; take auto"):
        resolve_machine(composed(tmp_path, "trainer=cpu", "trainer.precision=16-mixed"))
