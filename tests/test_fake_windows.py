"""The life of a run and of a sweep without what Windows lacks, see `fake_windows/sitecustomize.py`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, SMALL_RUN
from PIL import Image
from sweeps.fake_sweep import grid, results, script, states, wait_for

FOLDER = ROOT / "tests" / "fake_windows"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(map(str, (FOLDER, ROOT / "tests", ROOT / "src"))),
    "PYTHONWARNDEFAULTENCODING": "1",  # text files of vitlab without an encoding are errors there
    "PYTHONIOENCODING": "cp1252",  # of a redirected stdout
}
BREAK = signal.SIGTTIN  # Ctrl-Break in this Windows

# Commands one after the other in one process, because importing torch takes seconds; prints their exit statuses.
COMMANDS = """
import json, logging, runpy, sys
statuses = []
for script, *arguments in json.loads(sys.argv[1]):
    for handler in [*logging.root.handlers]:
        logging.root.removeHandler(handler)
        handler.close()
    sys.argv = [script, *arguments]
    try:
        if script.endswith(".py"):
            runpy.run_path(script, run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        statuses.append(end.code)
print("statuses", json.dumps(statuses))
"""


def run(*command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=500,
        errors="replace",
    )


REFUSED = [
    *("file = open('b', 'rb'); os.replace('a', 'b')", "file = numpy.load('c', mmap_mode='r'); os.replace('a', 'c')"),
    *("os.rename('a', 'b')", "file = open('a', 'rb'); os.unlink('a')", "os.fsync(open('a', 'rb').fileno())"),
    *("os.symlink('a', 'd')", "os.mkdir('con')", "os.open('x:y', os.O_CREAT)", "select.select([], [1], [])"),
    *(
        "open('a').read()",
        "subprocess.Popen(['true'], preexec_fn=print)",
        "os.killpg(1, 9)",
        "signal.SIGHUP",
        "import fcntl",
    ),
]
ALLOWED = ["file = open('a', 'rb+'); os.fsync(file.fileno())", "os.replace('a', 'b')", "os.mkdir('console')"]
ATTEMPTS = """
import json, numpy, os, select, signal, subprocess, sys
refused = []
for code in json.loads(sys.argv[1]):
    for name in "ab":
        open(name, "wb").close()
    numpy.save("c.npy", numpy.zeros(3))
    os.replace("c.npy", "c")
    try:
        exec(code, {**globals(), "__name__": "vitlab.x"})
    except (OSError, ValueError, AttributeError, ImportError, EncodingWarning):
        refused.append(code)
print(json.dumps(refused))
"""


def test_the_imitation_refuses_what_windows_refuses(tmp_path: Path) -> None:
    result = run("-c", ATTEMPTS, json.dumps([*REFUSED, *ALLOWED]), cwd=tmp_path)
    assert json.loads(result.stdout or "[]") == REFUSED, result.stderr


def test_the_life_of_a_run(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    keys = {"_target_": "stoppers.SendSignal", "number": 1, "hook": "on_train_batch_start", "epoch": 0, "batch": 2}
    stop = [f"+callbacks.stop.{key}={value}" for key, value in keys.items()]
    small = [*SMALL_RUN, "data.train_images=300", "data.test_images=50"]
    train, light = str(ROOT / "train.py"), "callbacks.figures.level=light"
    commands = {
        "train, stopped by Ctrl-Break": (
            [train, *small, light, "preflight=strict", "hydra.run.dir=run", *stop],
            143,
        ),
        "resume": ([train, "resume=run", "callbacks.stop=null"], 0),
        "resume, finished": ([train, "resume=run"], 2),
        "evaluate": ([str(ROOT / "evaluate.py"), "run=run", "calibrate=true"], 0),
        "evaluate again": ([str(ROOT / "evaluate.py"), "run=run", "calibrate=true"], 0),
        "predict": ([str(ROOT / "predict.py"), "run=run", "images=image.png", "out=out"], 0),
        "explain": (["vitlab.explain", "run=run", "images=image.png", "out=maps"], 0),
        "embed": (["vitlab.embed", "run=run", "split=test", "out=features.npz"], 0),
        "export": (["vitlab.export", "run=run", "out=exported"], 0),
        "leaderboard": (["vitlab.leaderboard", "."], 0),
        "a name that Windows does not allow": ([train, *SMALL_RUN, "name=con"], 2),
    }
    result = run("-c", COMMANDS, json.dumps([command for command, _ in commands.values()]), cwd=tmp_path)
    assert "Traceback" not in result.stderr, result.stderr
    statuses = json.loads(result.stdout.rpartition("statuses ")[2])
    assert dict(zip(commands, statuses, strict=True)) == {name: status for name, (_, status) in commands.items()}
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["status"], len(manifest["resumed"])) == ("finished", 1)
    assert (tmp_path / "run" / "report.html").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    assert list(tmp_path.rglob("leaderboard.csv"))
    assert "Windows allows no file or folder con" in result.stderr


def test_a_stopped_sweep_resumes(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = script(folder, grid("+hold=never", seeds=[0]), preload=None)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT)
    wait_for(lambda: all((folder / job / "checkpoints" / "last.ckpt").exists() for job in "01"))
    process.send_signal(BREAK)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert {status for _, status in states(folder)} == {"interrupted"}  # they have saved
    assert {json.loads(file.read_text())["status"] for file in folder.glob("*/manifest.json")} == {"interrupted"}
    again = subprocess.run(command, env=ENVIRONMENT, timeout=120)
    assert again.returncode == 0
    assert len(results(folder)) == 2
    assert all(json.loads(file.read_text())["resumed"] for file in folder.glob("*/manifest.json"))
    assert not (folder / "earlier").exists()
