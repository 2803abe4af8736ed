"""Test the checkpoints that are kept beside the best and the last one, tags, and runs without callbacks."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL_RUN, Command

TINY = [*SMALL_RUN, "data.train_images=120", "data.test_images=40", "preflight=off", "hydra.run.dir=runs/a"]


def epochs_of(run: Path) -> dict[str, int]:
    files = (run / "checkpoints").glob("*.ckpt")
    return {file.name: torch.load(file, weights_only=True)["epoch"] + 1 for file in files}


@pytest.mark.parametrize("validation", [[], ["trainer.check_val_every_n_epoch=4"], ["data.val_size=0"]])
def test_the_best_epochs_and_every_second_one_are_kept_after_resuming_too(
    validation: list[str], in_process: Command, tmp_path: Path
) -> None:
    kept = ["checkpoint.save_top_k=2", "checkpoint.every_n_epochs=2", "checkpoint.monitor=train/loss", *validation]
    run = tmp_path / "runs" / "a"
    assert in_process("train.py", *TINY, "trainer.max_epochs=3", *kept).returncode == 0
    moved = run.rename(tmp_path / "runs" / "b")
    assert in_process("train.py", "resume=runs/b", "trainer.max_epochs=5").returncode == 0
    files = epochs_of(moved)
    rows = [line.split(",") for line in (moved / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("train/loss")
    losses = {int(row[0]): float(row[column]) for row in rows[1:]}
    best = sorted(losses, key=losses.__getitem__)[:2]
    final = json.loads((moved / "metrics.json").read_text())
    row = dict(zip(rows[0], rows[best[0]], strict=True))
    assert final["epoch"] == best[0]
    assert ("val/acc" in final) == bool(row["val/acc"])
    assert files == {
        "best.ckpt": best[0],
        "last.ckpt": 5,
        **{f"top_epoch_{epoch:03d}.ckpt": epoch for epoch in best},
        **{f"epoch_{epoch:03d}.ckpt": epoch for epoch in (2, 4)},
    }


def test_tags_and_notes_are_recorded_and_choose_the_runs_of_a_leaderboard(in_process: Command, tmp_path: Path) -> None:
    given = ["trainer.max_epochs=1", "callbacks=none", "tags=[a,b]", "notes='with: a colon'"]
    result = in_process("train.py", *(a for a in TINY if not a.startswith("callbacks.")), *given)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "a"
    assert json.loads((run / "manifest.json").read_text())["tags"] == ["a", "b"]
    assert "notes: 'with: a colon'" in (run / "config.yaml").read_text()
    assert in_process("-m", "vitlab.leaderboard", "runs", "tags=[b]").returncode == 0
    assert "a, b" in (tmp_path / "runs" / "leaderboard.md").read_text()
    other = in_process("-m", "vitlab.leaderboard", "runs", "tags=[b,c]")
    assert other.returncode == 2
    assert "tags=[b,c]" in other.stderr
