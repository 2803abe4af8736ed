"""What all processes of a run must do alike, and the first one decides: the run's directory."""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

from vitlab.distributed.process import Process, this_process
from vitlab.errors import UserError

WAIT = timedelta(minutes=10)  # until all have imported what they need; a file system of many machines is slow
HEARD = "VITLAB_AGREED_"  # of the variables in which the processes that Lightning starts find the answers


def broadcast_from_rank0(what: str, decide: Callable[[], str], wait: timedelta = WAIT) -> str:
    """What the first process decides; the others wait for it.

    Raises:
        UserError: the first process can't be reached, or ended before it had decided.
    """
    me = this_process()
    if me.started_by == "Lightning":  # later, by the first process
        return _given(what)
    if me.has_peers and not me.is_rank_zero:
        return _hear(me, what, wait)
    answer = os.environ[HEARD + what] = decide()
    if me.has_peers:
        store = _store(me)
        store.set(what, answer)
        store.wait([f"{what} heard by {rank}" for rank in range(1, me.ranks)], wait)
    return answer


def _given(what: str) -> str:
    try:
        return os.environ[HEARD + what]
    except KeyError:
        raise UserError("LOCAL_RANK and WORLD_SIZE are set, but not by torchrun, srun or trainer.devices") from None


def _hear(me: Process, what: str, wait: timedelta) -> str:
    try:
        store = _store(me)
        store.wait([what], wait)
        answer = str(store.get(what).decode())
        store.set(f"{what} heard by {me.rank}", "yes")
    except RuntimeError as error:  # torch.distributed's errors are some of these
        raise UserError(
            f"process {me.rank} of {me.ranks} has heard nothing from the first one at {os.environ['MASTER_ADDR']}: see "
            "what that one says"
        ) from error
    return answer


@cache  # the first process's own serves until it ends
def _store(me: Process) -> Any:
    from torch.distributed import PrefixStore, TCPStore

    if me.started_by == "srun":
        from pytorch_lightning.plugins.environments import SLURMEnvironment

        cluster = SLURMEnvironment(auto_requeue=False)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = cluster.main_address, str(cluster.main_port)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun serves a store for all of its processes. Else the first process does: not at the port at which it will
    # serve torch.distributed's own.
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    port += 0 if served else 1
    try:
        store = TCPStore(address, port, is_master=me.is_rank_zero and not served, timeout=WAIT, wait_for_workers=False)
    except RuntimeError as error:
        if not me.is_rank_zero:
            raise
        raise UserError(f"the port {port} of {address} can't be used: take another MASTER_PORT=...") from error
    attempt = [os.environ.get(name, "") for name in ("SLURM_STEP_ID", "TORCHELASTIC_RESTART_COUNT")]
    return PrefixStore(f"vitlab {'.'.join(attempt)}", store)
