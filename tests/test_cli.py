import gc
import os
import subprocess
import sys

import pytest
from conftest import Command

from vitlab.cli import no_gc_imports

BEGIN = """
import gc
from vitlab.cli import no_gc_imports
with no_gc_imports():
    import torch
    assert not gc.isenabled()
print(gc.isenabled(), gc.get_freeze_count() > 50_000)
"""


def test_garbage_is_collected_once_the_libraries_are_there() -> None:
    result = subprocess.run([sys.executable, "-c", BEGIN], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True"]


def test_a_process_that_has_them_keeps_collecting() -> None:
    frozen = gc.get_freeze_count()
    with no_gc_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_a_notebook_s_choice_of_how_to_draw_is_not_ours(
    script: str, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # not installed here
    assert in_process(script, "--help").returncode == 0
    assert os.environ["MPLBACKEND"] == "agg"
