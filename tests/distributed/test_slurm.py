import os

import pytest

from vitlab.distributed.process import is_requeued, job

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("variables", "named", "before"),
    [
        ({}, None, False),
        ({"SLURM_JOB_ID": "7"}, "7", False),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, "7", True),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "7_2", False),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "0"}, f"process {os.getppid()} of", False),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}, f"process {os.getppid()} of", True),
        # The number outlives the torchrun that a requeued job starts anew.
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "0", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, "7", True),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1", "SLURM_JOB_ID": "7"}, "7", True),
    ],
)
def test_what_gives_a_command_again(
    variables: dict[str, str], named: str | None, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = job()
    assert found == named if named is None or named[0].isdigit() else named in str(found)
    assert is_requeued() == before
