"""Record the origin of a run: command, code, versions, machine."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import torch

from vitlab.arguments.entry_points import this_command
from vitlab.distributed.process import job
from vitlab.files import IS_CLONE, ROOT
from vitlab.system import cpu_name

PACKAGES = (
    *("vitlab", "torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf"),
    "numpy",
)


def describe_origin() -> dict[str, Any]:
    """Command, working directory, job, git revision, versions and hardware of this process, as plain data."""
    return {
        "command": this_command(),
        "folder": str(Path.cwd()),
        "job": job(),
        "git": _git(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "hardware": {
            "platform": platform.platform(),
            "cpu": cpu_name(),
            "cpu_cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase for each difference of two manifests in code, versions, hardware and images, if both record it."""
    found = []
    for group in ("git", "versions", "hardware", "data"):
        old, new = then.get(group) or {}, now.get(group) or {}
        for name in sorted(key for key in set(old) & set(new) if old[key] != new[key]):
            change = f"{name} changed from {old[name]} to {new[name]}"
            found.append(f"the {name} images changed" if group == "data" else change)
    return found


def _git() -> dict[str, Any]:
    """Git revision of this code, and whether tracked files differ from it; None if it is unknown."""
    unknown = {"revision": None, "dirty": None}
    if not IS_CLONE:  # installed from a wheel, perhaps inside of another project's clone; pip notes `git+https://`
        source = json.loads(distribution("vitlab").read_text("direct_url.json") or "{}")
        revision = source.get("vcs_info", {}).get("commit_id")
        return {"revision": revision, "dirty": False} if revision else unknown
    ask = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        answer = subprocess.run(ask, capture_output=True, encoding="utf-8", timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return unknown
    return {"revision": answer.removesuffix("-dirty"), "dirty": answer.endswith("-dirty")}
