"""Test that a forked job is like a job that was started as a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from conftest import ROOT, SMALL_RUN
from sweeps.fake_sweep import FAKE, POLL_SECONDS, START, grid, make_sweep, results, states, wait_for
from test_resume import assert_same_run

from vitlab.sweeps.executors import LocalExecutor
from vitlab.sweeps.fork_server import RUN_MODULES, ForkedProcess, ForkServer
from vitlab.sweeps.runner import run_grid
from vitlab.system import LINUX, start_process

pytestmark = pytest.mark.skipif(not LINUX, reason="only Linux lets a process adopt the children of its children")

# Prints what a job can tell about its process, and what it was started with.
PROBE = """
import ctypes, json, os, signal, sys, threading, warnings
from vitlab.runs.console import protect_streams

protect_streams()
death = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(death))  # PR_GET_PDEATHSIG
streams = [sys.stdin, sys.stdout, sys.stderr]
print(json.dumps({
    "command": [part for part in open("/proc/self/cmdline").read().split("\\0") if part],
    "arguments": [sys.argv, sys.path[0], os.getcwd(), dict(os.environ)],
    "main": [__name__, __file__, str(sys.modules["__main__"].__spec__)],
    "streams": [[s.encoding, s.errors, s.line_buffering, s.isatty(), s.fileno()] for s in streams],
    "files": [os.readlink(f"/proc/self/fd/{number}") for number in range(3)],
    "open": len(os.listdir("/proc/self/fd")),
    "signals": [str(signal.getsignal(number)) for number in range(1, 32)],
    "blocked": str(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "group": [os.getpid() == os.getsid(0) == os.getpgid(0), os.getppid(), death.value],
    "threads": threading.active_count(),
    "warnings": str(warnings.filters),
    "umask": os.umask(0o22),
    "typed": sys.stdin.read(),
}), flush=True)
os.write(1, b"by number\\n")
ctypes.CDLL(None).printf(b"by C\\n")
print("with no end of line", end="")
"""


@pytest.fixture(scope="module")
def plain() -> Iterator[ForkServer]:
    """A server that has imported nothing more than it needs itself."""
    found = ForkServer([], dict(os.environ))
    wait_for(lambda: not found.is_importing())
    yield found
    found.close()


@pytest.fixture
def server() -> Iterator[Callable[..., ForkServer]]:
    """Starts a server and waits until it has imported."""
    servers = []

    def start(*modules: str, environment: Mapping[str, str] | None = None) -> ForkServer:
        servers.append(found := ForkServer(modules, dict(environment or os.environ)))
        wait_for(lambda: not found.is_importing())
        return found

    yield start
    for found in servers:
        found.close()


def run(server: ForkServer, log: Path, *command: str) -> ForkedProcess:
    process = server.start([sys.executable, *command], server.environment, log)
    assert process is not None
    return process


def status_of(process: ForkedProcess) -> int | None:
    wait_for(lambda: process.poll() is not None)
    return process.poll()


def own_process(log: Path, *command: str, environment: Mapping[str, str] = os.environ) -> int:
    with log.open("ab") as file:
        return start_process([sys.executable, *command], file, dict(environment)).wait()


def test_a_forked_job_finds_the_same_process(plain: ForkServer, tmp_path: Path) -> None:
    probe, log, other = tmp_path / "probe.py", tmp_path / "forked.log", tmp_path / "own.log"
    probe.write_text(PROBE)
    assert status_of(run(plain, log, str(probe), "key=a b", "ü")) == 0
    assert own_process(other, str(probe), "key=a b", "ü", environment=plain.environment) == 0
    forked, own = log.read_text(), other.read_text().replace(other.name, log.name)
    assert "by C\n" in forked
    assert forked.endswith("with no end of line")
    (line, *lines), (own_line, *own_lines) = forked.splitlines(), own.splitlines()
    assert sorted(lines) == sorted(own_lines)
    assert json.loads(line) == json.loads(own_line)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("sys.exit()", 0),
        ("sys.exit(143)", 143),
        ("sys.exit('a reason')", 1),
        ("raise ValueError('a reason')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("threading.Thread(target=lambda: (time.sleep(0.2), print('later'))).start(); sys.exit(3)", 3),
        ("atexit.register(print, 'later'); sys.exit(3)", 3),
        (
            "logging.root.addHandler(logging.handlers.MemoryHandler(9, target=logging.StreamHandler()))\n"
            "logging.warning('later'); sys.exit(2)",
            2,
        ),
    ],
)
def test_a_forked_job_ends_as_its_own_process_would(code: str, status: int, plain: ForkServer, tmp_path: Path) -> None:
    script, forked, own = tmp_path / "job.py", tmp_path / "forked.log", tmp_path / "own.log"
    script.write_text(f"import atexit, logging.handlers, os, signal, sys, threading, time\nprint('begin')\n{code}\n")
    assert status_of(run(plain, forked, str(script))) == own_process(own, str(script)) == status
    assert forked.read_text().startswith("begin\n")
    assert forked.read_text().splitlines()[-1] == own.read_text().splitlines()[-1]


# Imported last by a server: each of its jobs prints at its end which packages it had to import.
LATE = """
import atexit, sys
known = set(sys.modules)

def print_late():
    before, now = ({name.partition(".")[0] for name in modules} for modules in (known, set(sys.modules)))
    print("imported late:", *sorted(now - before - sys.stdlib_module_names - {"hydra_plugins"}))

atexit.register(print_late)
"""


def test_a_forked_run_writes_the_same_files(server: Callable[..., ForkServer], tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "OMP_NUM_THREADS": "1"}
    short = ["trainer.max_epochs=1", "data.train_images=100", "data.test_images=40"]
    command = [str(ROOT / "train.py"), *SMALL_RUN, *short, "seed=1"]
    forked, own = tmp_path / "forked" / "0", tmp_path / "own" / "0"
    for folder in (forked, own):
        folder.parent.mkdir()
    job = run(
        server(*RUN_MODULES, "late", environment=environment),
        forked.parent / "log",
        *command,
        f"hydra.run.dir={forked}",
    )
    assert status_of(job) == 0, (forked.parent / "log").read_text()
    assert own_process(own.parent / "log", *command, f"hydra.run.dir={own}", environment=environment) == 0
    assert_same_run(forked, own)
    assert (forked / "config.yaml").read_text() == (own / "config.yaml").read_text().replace(str(own), str(forked))
    assert _files(forked) == _files(own)
    log, own_log = ((run.parent / "log").read_text() for run in (forked, own))
    assert _without_numbers(log) == _without_numbers(own_log.replace("own", "forked") + "imported late:\n")


def _files(run: Path) -> list[str]:
    """The names of a run's files; those of TensorBoard hold the time and the number of the process."""
    return sorted(re.sub(r"tfevents\.[\w.]+", "tfevents", str(file.relative_to(run))) for file in run.rglob("*"))


def _without_numbers(text: str) -> str:
    return re.sub(r"[\d.:,]+", "#", re.sub(" +", " ", text))


def test_each_log_begins_with_what_importing_printed(server: Callable[..., ForkServer], tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text("import sys\nprint('a version')\nprint('is old', file=sys.stderr)\n")
    (tmp_path / "job.py").write_text("import chatty\nprint('begin')\n")
    chatty = server("chatty", environment={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
    for name in ("0", "1"):
        assert status_of(run(chatty, tmp_path / name, str(tmp_path / "job.py"))) == 0
        assert (tmp_path / name).read_text() == "a version\nis old\nbegin\n"


def test_jobs_do_not_share_random_numbers(server: Callable[..., ForkServer], tmp_path: Path) -> None:
    code = "import random, tempfile, uuid\nprint(random.random(), uuid.uuid4(), tempfile.mktemp())\n"
    (tmp_path / "job.py").write_text(code)
    forking = server("random", "tempfile", "uuid")
    for name in ("0", "1"):
        assert status_of(run(forking, tmp_path / name, str(tmp_path / "job.py"))) == 0
    assert not set((tmp_path / "0").read_text().split()) & set((tmp_path / "1").read_text().split())


@pytest.mark.parametrize(
    "module",
    [
        "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "raise ImportError('a broken installation')",
        "import os; os._exit(1)",
    ],
)
def test_where_a_fork_is_not_safe_jobs_get_their_own_process(
    module: str, server: Callable[..., ForkServer], tmp_path: Path
) -> None:
    (tmp_path / "unsafe.py").write_text(module)
    found = server("unsafe", environment={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
    assert found.start([sys.executable, "job.py"], found.environment, tmp_path / "log") is None


def test_another_interpreter_or_environment_gets_its_own_process(
    server: Callable[..., ForkServer], tmp_path: Path
) -> None:
    found = server()
    assert found.start(["python3", "job.py"], found.environment, tmp_path / "log") is None
    more_threads = {**found.environment, "OMP_NUM_THREADS": "7"}  # read by libraries when they are loaded
    assert found.start([sys.executable, "job.py"], more_threads, tmp_path / "log") is None


def test_jobs_of_several_devices_are_not_forked(tmp_path: Path) -> None:
    executor, sweep = LocalExecutor(1, [], 2, preload=[]), make_sweep(tmp_path)
    job = sweep.job(0, [])
    job.devices = 2
    assert executor.has_room(job)
    assert executor.server is None


def test_a_killed_server_takes_no_job_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(FAKE), "-m"])
    monkeypatch.setattr("vitlab.sweeps.runner.POLL_SECONDS", POLL_SECONDS)
    executor = LocalExecutor(2, [], 4, preload=[])

    def kill() -> None:
        wait_for(lambda: all((tmp_path / job / "checkpoints" / "last.ckpt").exists() for job in "01"))
        assert executor.server is not None
        os.kill(executor.server.process.pid, signal.SIGKILL)
        for job in "01":
            (tmp_path / job / "go").touch()

    thread = threading.Thread(target=kill)
    thread.start()
    run_grid(make_sweep(tmp_path), executor, [*grid("+hold=go", lrs=["0.001"]), *grid(lrs=["0.01"])])
    thread.join()
    assert states(tmp_path) == [(number, "done") for number in range(4)]
    assert set(results(tmp_path)) == set("0123")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_a_sweep_that_is_stopped_while_its_server_imports_leaves_nothing(sent: signal.Signals, tmp_path: Path) -> None:
    imports = tmp_path / "imports"
    (tmp_path / "endless.py").write_text(f"import time\nopen({str(imports)!r}, 'w').close()\ntime.sleep(600)\n")
    code = (
        f"{START}executor = LocalExecutor(2, [], 4, preload=['endless'])\n"
        f"runner.run_grid(make_sweep(Path({str(tmp_path / 'sweep')!r})), executor, grid())\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    wait_for(imports.exists)
    (server,) = _children(process.pid)
    process.send_signal(sent)
    process.wait(timeout=60)
    wait_for(lambda: not _is_running(server))
    assert not list((tmp_path / "sweep").glob("[0-9]/*"))


def _children(pid: int) -> Sequence[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_running(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # empty: nobody waits for it
    except OSError:
        return False
