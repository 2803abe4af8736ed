import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command
from torch.distributed import DistNetworkError

from vitlab.distributed.failure_report import Failure, describe, is_secondary
from vitlab.distributed.process import Process, check_start, this_process
from vitlab.errors import UserError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"}
SRUN = {
    **{"SLURM_JOB_ID": "1", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0"},
    **{"SLURM_NTASKS_PER_NODE": "2"},
}
BATCH = {**SRUN, "SLURM_PROCID": "0"}
del BATCH["SLURM_STEP_ID"]
NO_SHARE = {key: value for key, value in SRUN.items() if key != "SLURM_NTASKS_PER_NODE"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    for name in os.environ:
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in (*TORCHRUN, "NODE_RANK"):
            monkeypatch.delenv(name)

    def hold(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return hold


@pytest.mark.parametrize(
    ("variables", "process"),
    [
        ({}, Process()),
        (TORCHRUN, Process(5, 8, 2, "torchrun")),
        ({**SRUN, **TORCHRUN}, Process(5, 8, 2, "torchrun")),  # torchrun within a job
        (SRUN, Process(3, 4, 2, "srun")),
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, Process()),
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Process()),  # it starts what it needs itself
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2", "NODE_RANK": "0"}, Process(0, 2, 1, "user")),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}, Process(1, 2, 1, "Lightning")),
    ],
)
def test_rank_and_world_size_come_from_the_launcher_s_variables(
    variables: dict[str, str], process: Process, environment: Callable[[dict[str, str]], None]
) -> None:
    environment(variables)
    assert this_process() == process
    check_start(several=True)


@pytest.mark.parametrize(
    ("variables", "several", "sentence"),
    [
        (TORCHRUN, False, "this command runs as one process, but torchrun started 8"),
        (SRUN, False, "this command runs as one process, but srun started 4"),
        (BATCH, True, "this job has 4 tasks, but nothing starts them: use srun python train.py"),
        (NO_SHARE, True, "the number of processes per machine is unknown: use sbatch --ntasks-per-node"),
        ({"NODE_RANK": "1", "MASTER_ADDR": "node0"}, True, "NODE_RANK is set by hand: .*torchrun or srun"),
    ],
)
def test_a_start_that_would_wait_or_repeat_work_is_refused(
    variables: dict[str, str], several: bool, sentence: str, environment: Callable[[dict[str, str]], None]
) -> None:
    environment(variables)
    with pytest.raises(UserError, match=sentence):
        check_start(several=several)


def test_a_sweep_within_a_job_is_one_process(environment: Callable[[dict[str, str]], None]) -> None:
    environment(BATCH)
    check_start(several=False)


def test_evaluation_is_one_process(in_process: Command, environment: Callable[[dict[str, str]], None]) -> None:
    environment(TORCHRUN)
    for command in (["evaluate.py", "run=latest"], ["train.py", "-m", "seed=0,1"], ["train.py", "sweep=lr_wd"]):
        result = in_process(*command)
        assert (result.returncode, result.stderr) == (
            2,
            "error: this command runs as one process, but torchrun started 8\n",
        )


def failure(rank: int, time: float, error: str, secondary: bool) -> Failure:
    return Failure(rank, time, error, secondary)


OWN = failure(0, 3.0, "Connection closed by peer", True)
LOST = failure(1, 2.0, "Connection reset by peer", True)


@pytest.mark.parametrize(
    ("own", "told", "dead", "sentence"),
    [
        (OWN, [LOST, failure(2, 2.5, "KeyError: 'x'", False)], {}, "process 2 of 3 failed first: KeyError: 'x'"),
        (
            OWN,
            [failure(1, 2.0, "second", False), failure(2, 1.0, "first", False)],
            {},
            "process 2 of 3 failed first: fi",
        ),
        (OWN, [LOST], {2: -9}, "process 2 of 3 was killed by SIGKILL (out of memory?)"),
        (OWN, [LOST], {2: 1}, "process 2 of 3 ended with status 1"),
        (OWN, [LOST], {}, "process 2 of 3 was killed or does not answer any more (Connection closed by peer)"),
        (OWN, [], {}, "one of the processes 1, 2 of 3 was killed or does not answer any more"),
        (
            OWN,
            [LOST, failure(2, 2.0, "Timed out", True)],
            {},
            "the processes lost contact with each other (Connection closed by",
        ),
        (None, [LOST, failure(2, 2.0, "Timed out", True)], {}, "process 0 of 3 does not answer any more"),
    ],
)
def test_the_first_failure_is_named(
    own: Failure | None, told: list[Failure], dead: dict[int, int], sentence: str
) -> None:
    assert describe(own, told, dead, 3, Path("ranks")).startswith(sentence)


def test_errors_that_only_report_a_lost_peer_are_secondary() -> None:
    assert is_secondary(
        RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")
    )
    assert not is_secondary(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_secondary(ValueError("timed out"))
    assert not is_secondary(DistNetworkError("The server socket has failed to listen on any local network address"))
