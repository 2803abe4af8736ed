from pathlib import Path

import pytest

from vitlab.runs.manifest import entry_point


@pytest.mark.parametrize(
    ("command", "typed"),
    [
        ("python train.py model=vit_tiny", "evaluate.py"),
        ("python /home/me/train.py", "evaluate.py"),
        ("python ../vit/train.py", "../vit/evaluate.py"),
        ("python '/opt/vit lab/train.py' seed=1", "'/opt/vit lab/evaluate.py'"),
    ],
)
def test_a_command_is_told_as_it_works_in_its_folder(command: str, typed: str) -> None:
    assert entry_point("evaluate.py", command, Path("/home/me")) == typed
