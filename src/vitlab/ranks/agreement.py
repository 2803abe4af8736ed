"""What all processes of a run must do alike, and the first one decides: the run's directory."""

import os
from collections.abc import Callable
from datetime import timedelta

from vitlab.errors import UserError
from vitlab.ranks.identity import Process, this_process

WAIT = timedelta(minutes=10)  # until all have imported what they need; a file system of many machines is slow
HEARD = "VITLAB_AGREED_"  # of the variables in which the processes that Lightning starts find the answers


def agreed(what: str, decide: Callable[[], str]) -> str:
    """What the first process decides; the others wait for it.

    Raises:
        UserError: the first process can't be reached, or ended before it had decided.
    """
    me = this_process()
    if me.started_by == "Lightning":  # later, by the first process
        return os.environ[HEARD + what]
    if me.has_peers and not me.is_first:
        return _hear(me, what)
    answer = os.environ[HEARD + what] = decide()
    if me.has_peers:
        _tell(me, what, answer)
    return answer


def _tell(me: Process, what: str, answer: str) -> None:
    store = _store(me)
    store.set(what, answer)
    # The store may be this process's own: it has to stay until all have heard.
    store.wait([f"{what} heard by {rank}" for rank in range(1, me.ranks)], WAIT)


def _hear(me: Process, what: str) -> str:
    try:
        store = _store(me)
        store.wait([what], WAIT)
        answer = str(store.get(what).decode())
        store.set(f"{what} heard by {me.rank}", "yes")
    except RuntimeError as error:  # torch.distributed's errors are some of these
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"process {me.rank} of {me.ranks} has heard nothing from the first one at {place}: see what that one says"
        ) from error
    return answer


def _store(me: Process):  # type: ignore[no-untyped-def]  # torch is not imported here for one process
    from torch.distributed import PrefixStore, TCPStore

    if me.started_by == "srun":
        from pytorch_lightning.plugins.environments import SLURMEnvironment

        cluster = SLURMEnvironment(auto_requeue=False)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = cluster.main_address, str(cluster.main_port)
    # torchrun serves a store for all of its processes; else the first process does, where it will later serve
    # torch.distributed's own, and has to be gone by then.
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=me.is_first and not served, timeout=WAIT, wait_for_workers=False)
    return PrefixStore(f"vitlab {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
