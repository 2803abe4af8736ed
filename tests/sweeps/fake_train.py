"""Fake train.py for tests of sweeps: writes the files of a run in the right order, without training.

`act=` selects how it ends: raise, exit, kill (itself), error (of the user); with `raise_if=` it raises if that file
exists. `hold=` is a file, in the run directory or with its whole path: a new run waits after its first epoch until it
is stopped or the file exists, at most a minute.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

from vitlab.files import write_json, write_text
from vitlab.runs.directory import RunDirectory
from vitlab.system import stop_signals

arguments = dict(argument.lstrip("+").split("=", 1) for argument in sys.argv[1:])
stopped = []
for number in stop_signals():
    signal.signal(number, lambda *_: stopped.append(True))

if "resume" in arguments:
    run = RunDirectory(Path(arguments["resume"].strip("'")))
    config = json.loads((run.checkpoints / "last.ckpt").read_text())
    run.reopen({})
else:
    run = RunDirectory(Path(arguments["hydra.run.dir"].strip("'")))
    config = {
        "lr": float(arguments["optimizer.lr"]),
        "seed": int(arguments["seed"]),
        "epochs": 3,
        "rows": [],
        **({"act": arguments["act"]} if "act" in arguments else {}),
    }
    config["epochs"] = int(arguments.get("trainer.max_epochs", 3))
    run.create({"seed": config["seed"]}, {"seed": config["seed"]})
    run.checkpoints.mkdir()
print("OMP", os.environ.get("OMP_NUM_THREADS"), "RANK", os.environ.get("LOCAL_RANK"), os.environ.get("MASTER_ADDR"))
act = config.get("act")
if act == "raise" or Path(arguments.get("raise_if", "")).is_file():
    run.end("failed")
    raise ValueError("no such luck")
if act == "exit":
    sys.exit()
if act == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if act == "error":
    run.end("failed")
    print("error: optimizer.lr=-1.0 must be a number above 0", file=sys.stderr)
    sys.exit(2)
latest = time.monotonic() + 60  # a test that fails ends
for epoch in range(len(config["rows"]), config["epochs"]):
    accuracy = 0.9 - (math.log10(config["lr"]) + 3) ** 2 / 10 - 0.2 / (epoch + 1) + config["seed"] / 1000
    config["rows"].append(accuracy)
    lines = [f"{i},{i},{i},{value!r}" for i, value in enumerate(config["rows"], 1)]
    write_text(run.epochs_file, "\n".join(["epoch,step,seconds,val/acc", *lines, ""]))
    write_json(run.checkpoints / "last.ckpt", config)
    while "hold" in arguments and not stopped and not (run.path / arguments["hold"]).exists():
        time.sleep(0.02)
        if time.monotonic() > latest:
            break
    if stopped:
        run.end("interrupted")
        sys.exit(143)
write_json(run.metrics_file, {"val/acc": config["rows"][-1], "epoch": config["epochs"], "seconds": 1.0})
run.end("finished")
