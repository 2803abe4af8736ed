import json
from pathlib import Path

from conftest import Command


def test_the_demo_learns_its_shapes(command: Command, tmp_path: Path) -> None:
    result = command("train.py", "experiment=demo", "trainer.max_epochs=4")  # of 12: half a minute
    assert result.returncode == 0
    assert result.stderr == ""
    assert "warn" not in result.stdout.lower()
    (run,) = (tmp_path / "outputs" / "demo").iterdir()
    assert json.loads((run / "metrics.json").read_text())["test/acc"] >= 0.5
