import json
from pathlib import Path

import pytest
from conftest import Command


@pytest.mark.slow  # a minute and a half; .ci/run holds the demo that it runs itself to the same accuracy
def test_the_demo_learns_its_shapes(command: Command, tmp_path: Path) -> None:
    result = command("train.py", "experiment=demo")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "warn" not in result.stdout.lower()
    (run,) = (tmp_path / "outputs" / "demo").iterdir()
    assert json.loads((run / "metrics.json").read_text())["test/acc"] >= 0.8
