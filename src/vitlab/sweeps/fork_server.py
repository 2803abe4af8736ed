"""Start the jobs of a sweep as forks of one process that has imported torch.

Importing takes seconds, in each process anew. The server is a fresh Python process that only imports. A fork of it is a
job: it opens the job's log, takes the job's arguments, and runs train.py to its end, as a process of its own does.
Another process, between server and job, ends at once, so that Linux makes the job a child of the sweep: its exit
status, its signals, and its end with the sweep are those of a process that the sweep started itself. If the server is
killed, its jobs continue.
"""

import atexit
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from vitlab.system import SIGKILL, adopt_orphans, die_with_parent, show_command

RUN_MODULES = ("vitlab.cli", "vitlab.experiment")  # what a run imports, also late
MAX_OUTPUT = 100_000  # bytes of what importing prints, which each job's log repeats
SERVER = "import sys; del sys.path[0]; from vitlab.sweeps.fork_server import serve; serve({modules})"
ROOM = " " * 2000  # an argument of the server, in whose place `ps` shows the command of a job
NO_JOB = 0  # an answer of the server in place of the number of a process


class ForkedProcess:
    """A job that a server forked: the part of `subprocess.Popen` that executors use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, as Popen does; None while it runs."""
        if self.returncode is None:
            try:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # who started the sweep made it ignore SIGCHLD: the status is lost
                ended, status = self.pid, 0
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


class ForkServer:
    """The server of a sweep: imports `modules` in the background from now on, in the environment of its jobs."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.socket, theirs = socket.socketpair()
        self.answers = self.socket.makefile("r")
        self.is_ready = self.has_ended = False
        with theirs, tempfile.TemporaryFile() as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER.format(modules=list(modules)), ROOM],
                env={**environment, "PYTHONIOENCODING": "utf-8"},
                stdin=theirs.fileno(),
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C does not reach it
            )
        adopt_orphans()

    def is_importing(self) -> bool:
        """Whether it cannot start a job yet, but will."""
        if not self.is_ready and not self.has_ended and select.select([self.socket], [], [], 0)[0]:
            self.is_ready = self._answer() is not None
        return not self.is_ready and not self.has_ended

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> ForkedProcess | None:
        """Start `python train.py ...`, its output appended to `log`; None if that needs a process of its own."""
        if not self.is_ready or self.has_ended or command[0] != sys.executable or environment != self.environment:
            return None
        try:
            self.socket.sendall(json.dumps([list(command), str(log)]).encode() + b"\n")
        except OSError:
            self.has_ended = True
            return None
        pid = self._answer()
        return ForkedProcess(pid) if pid else None

    def close(self) -> None:
        """End the server; jobs that it forked continue."""
        self.process.kill()
        self.process.wait()
        self.answers.close()
        self.socket.close()

    def _answer(self) -> int | None:
        """Wait for the server's answer; None if it has ended."""
        try:
            line = self.answers.readline()
        except OSError:
            line = ""
        self.has_ended = not line
        return int(line) if line else None


def serve(modules: Sequence[str]) -> None:
    """Import `modules`, then fork for each request; return in the server at the end of the sweep, and in each fork at
    the end of its job."""
    die_with_parent(SIGKILL)
    exit_status: list[int] = []  # of a job
    atexit.register(_end_quickly, exit_status)  # the first one registered is called last
    sweep = os.getppid()

    from vitlab.runs.console import protect_streams  # not before: logging registers its own end

    protect_streams()
    gc.disable()
    for name in modules:
        import_module(name)
    gc.freeze()  # what the collector touched, each fork would have to copy
    gc.enable()
    torch = sys.modules.get("torch")
    if threading.active_count() > 1 or (torch and torch.cuda.is_initialized()):
        return  # neither survives a fork: each job gets a process of its own
    _send(NO_JOB)
    while line := sys.stdin.readline():
        try:
            between = os.fork()
        except OSError:  # no memory, or too many processes
            _send(NO_JOB)
            continue
        if between == 0:
            _leave_server(sweep)
            break
        if os.waitpid(between, 0)[1] != 0:
            _send(NO_JOB)
    if not line:
        return
    command, log = json.loads(line)
    _open_streams(log)
    show_command(command)
    sys.argv[:] = command[1:]
    sys.path.insert(0, str(Path(command[1]).resolve().parent))  # as python train.py does
    try:
        runpy.run_path(command[1], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, int):
            exit_status.append(end.code)
        raise


def _send(answer: int) -> None:
    os.write(0, b"%d\n" % answer)


def _leave_server(sweep: int) -> None:
    """Fork once more and end the process in between: what returns is a child of the sweep, in a session of its own."""
    between = os.getpid()
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)
    while os.getppid() == between:
        time.sleep(0.001)
    die_with_parent(signal.SIGTERM)
    os.setsid()
    if os.getppid() != sweep:  # it has ended, or the system does not know adoption
        _send(NO_JOB)
        os._exit(1)
    _send(os.getpid())


def _open_streams(log: str) -> None:
    """Make the log the output, without input; it begins with what importing printed."""
    imported = os.pread(1, MAX_OUTPUT, 0)
    output, nothing = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), os.open(os.devnull, os.O_RDONLY)
    os.write(output, imported)
    for stream, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, stream)
    os.close(nothing)
    os.close(output)


def _end_quickly(exit_status: Sequence[int]) -> None:
    """End a job's process after all else has ended: taking apart what it imported would take half a second."""
    if exit_status:
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).fflush(None)  # what C libraries printed
        os._exit(exit_status[0])
