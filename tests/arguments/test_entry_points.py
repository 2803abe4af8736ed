import sys
from pathlib import Path

import pytest

from vitlab.arguments import entry_points
from vitlab.arguments.entry_points import as_typed, entry_point, this_command


@pytest.mark.parametrize(
    ("command", "typed"),
    [
        ("python train.py model=vit_tiny", "python evaluate.py"),
        ("python /home/me/train.py", "python evaluate.py"),
        ("python ../vit/train.py", "python ../vit/evaluate.py"),
        ("python '/opt/vit lab/train.py' seed=1", "python '/opt/vit lab/evaluate.py'"),
        ("vitlab train seed=1", "vitlab evaluate"),
    ],
)
def test_a_command_is_told_as_it_works_in_its_folder(command: str, typed: str) -> None:
    assert entry_point("evaluate", command, Path("/home/me")) == typed


def test_the_console_script_calls_itself_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "python train.py, evaluate.py x=1, python -m vitlab.explain, timm's train.py, python /opt/train.py"
    monkeypatch.setattr(sys, "argv", ["/opt/vit lab/train.py", "notes=a b"])
    assert this_command() == "python '/opt/vit lab/train.py' 'notes=a b'"
    assert as_typed(text) == text
    monkeypatch.setenv(entry_points.CONSOLE_SCRIPT, "")  # to be restored
    entry_points.pretend_script("train", "notes=a b")
    assert Path(sys.argv[0]).is_file()
    assert this_command() == "vitlab train 'notes=a b'"
    assert as_typed(text) == "vitlab train, vitlab evaluate x=1, vitlab explain, timm's train.py, python /opt/train.py"
