"""All differences between Linux, macOS and Windows, in one place."""

import ctypes
import os
import platform
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, Any

WINDOWS, LINUX, MAC = (sys.platform == name for name in ("win32", "linux", "darwin"))

# Signals that Windows does not have; None there. SIGUSR1 is SLURM's warning before the time limit.
SIGHUP, SIGUSR1, SIGKILL = (getattr(signal, name, None) for name in ("SIGHUP", "SIGUSR1", "SIGKILL"))
BREAK: Any = getattr(signal, "CTRL_BREAK_EVENT", None)  # of Windows: reaches a process as SIGBREAK
NEW_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # man prctl
REPLACE_SECONDS = 10.0  # to wait for another program that reads a file
# What no file or folder of Windows can be called (Microsoft, "Naming Files, Paths, and Namespaces").
BAD_NAME = re.compile(r'.*[<>:"|?*\x00-\x1f].*|.*[. ]|(con|prn|aux|nul|com[\d¹²³]|lpt[\d¹²³])(\..*)?', re.IGNORECASE)
LONGEST_PATH = 259  # characters on Windows, unless it was told to allow more


def prepare_environment() -> None:
    """Set what torch reads when it is imported."""
    if MAC:  # operations that Apple's GPU lacks run on the CPU instead of failing
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    if WINDOWS:  # torch's builds for Windows lack it, but torch 2.11 asks for it
        os.environ.setdefault("USE_LIBUV", "0")


# Signals and processes


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a run or sweep to stop: Ctrl-C, SIGTERM, SIGHUP (the terminal was closed) unless nohup made
    it ignored, SIGUSR1, and Windows' Ctrl-Break."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK")
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in found if number != SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]


def die_with_parent(number: int | None) -> None:
    """Make Linux send this process the signal `number` when its parent ends, for whatever reason."""
    if LINUX and number is not None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Make Linux give this process the children of its children whose own parent has ended."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def show_command(command: Sequence[str]) -> None:
    """Make Linux list this process under another command, cut to the length of the one that it was started with."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # of the arguments in memory: arg_start and arg_end of man proc
    if start:  # hidden in some containers
        text = b"\0".join(map(os.fsencode, command))
        ctypes.memmove(start, text[: end - start - 1].ljust(end - start, b"\0"), end - start)


def start_process(command: Sequence[str], log: IO[bytes], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a command in a process group of its own, without input; its output, in UTF-8, goes to `log`.

    Ctrl-C in the terminal does not reach it. On Linux it is asked to stop when this process ends.
    """
    group: dict[str, Any] = {"creationflags": NEW_GROUP}
    if not WINDOWS:
        group = {"start_new_session": True, "preexec_fn": partial(die_with_parent, signal.SIGTERM)}
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env={**environment, "PYTHONIOENCODING": "utf-8"}, **streams, **group)


def ask_to_stop(process: Any) -> None:
    """Ask a process of `start_process` to save and end."""
    if not WINDOWS:
        process.terminate()
        return
    try:  # terminate() would end it at once
        process.send_signal(BREAK)
    except OSError:  # without a console, such as in a service, nothing reaches it
        process.terminate()


def kill_group(process: Any) -> None:
    """Kill a process of `start_process` and what it has started; on Windows only while the process itself runs."""
    if not WINDOWS:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        with suppress(OSError):
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        process.kill()


def describe_exit(status: int) -> str:
    """The end of a process that failed, in a few words, from Popen's `returncode`."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"was killed by {name}" + (" (out of memory?)" if -status == SIGKILL else "")
    # Windows' own codes: 0xC0000005 is an access violation, 0xC0000017 no memory.
    return f"ended with status {status if status < 256 else hex(status)}"


# Commands to type in a shell


def quote_for_shell(text: str) -> str:
    """An argument as you type it in a shell: as `shlex.quote`, but for what a terminal does not show or changes.

    On Windows in double quotes, which cmd.exe and PowerShell both know.
    """
    if WINDOWS:
        if re.fullmatch(r"[\w.\-+=:/\\~]+", text):
            return text
        return '"' + re.sub(r'(\\*)"', r'\1\1\\"', re.sub(r"(\\+)$", r"\1\1", text)) + '"'
    if text.isprintable():
        return shlex.quote(text)
    safe = (chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}" for byte in os.fsencode(text))
    return f"$'{''.join(safe)}'"


def join_command(arguments: Sequence[str]) -> str:
    """A command as you type it in a shell."""
    return " ".join(map(quote_for_shell, arguments)) if WINDOWS else shlex.join(arguments)


def split_command(command: str) -> list[str]:
    """The arguments of a command that `join_command` wrote."""
    if not WINDOWS:
        return shlex.split(command)
    found = re.findall(r'"((?:\\.|[^"\\])*)"|(\S+)', command)
    return [plain or _unquote(quoted) for quoted, plain in found]


def _unquote(text: str) -> str:
    """The inside of double quotes: backslashes are doubled in front of a quote and at the end."""
    text = re.sub(r'((?:\\\\)*)\\"', lambda match: match[1][::2] + '"', text)
    return re.sub(r"((?:\\\\)+)$", lambda match: match[1][::2], text)


# Files and names


def flush_to_disk(path: Path) -> None:
    """Return when a file is on the disk."""
    with path.open("r+b") as file:  # Windows refuses it for a file that is only read
        os.fsync(file.fileno())


def replace(source: Path, target: Path) -> None:
    """Rename a file to one that may exist. Windows refuses that while another program reads it: wait for it."""
    deadline = time.monotonic() + REPLACE_SECONDS
    while True:
        try:
            os.replace(source, target)  # noqa: PTH105
            return
        except PermissionError:
            if not WINDOWS or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def relative_to(path: Path, folder: Path) -> str:
    """A path as you type it in a folder; absolute if it lies on another drive of Windows."""
    try:
        return os.path.relpath(path, folder)
    except ValueError:
        return str(path.absolute())


def name_fault(path: Path) -> str:
    """Why Windows can't make a folder with this path, in a few words; empty if it can, and on other systems."""
    if not WINDOWS:
        return ""
    wrong = next((part for part in path.parts[bool(path.anchor) :] if part != ".." and BAD_NAME.fullmatch(part)), "")
    return f"Windows allows no file or folder {wrong}" if wrong else ""


def path_fault(error: OSError) -> str:
    """Why Windows refuses a path, where its own error says only that there is no such file; empty otherwise."""
    if not WINDOWS or not error.filename:
        return ""
    if getattr(error, "winerror", 0) == 206 or len(os.path.abspath(error.filename)) > LONGEST_PATH:  # noqa: PTH100
        return f"Windows allows {LONGEST_PATH} characters"
    return name_fault(Path(os.fsdecode(error.filename)))


def is_link(path: Path) -> bool:
    """Whether a path is a symbolic link or, on Windows, a junction."""
    with suppress(FileNotFoundError):  # it was there when its folder was listed
        return path.is_symlink() or bool(getattr(path.lstat(), "st_reparse_tag", 0))
    return False


def is_path_like(text: str) -> bool:
    """Whether a text could name a place in the file system of any system, rather than a file in a given folder."""
    return "/" in text or "\\" in text or ".." in text or bool(PureWindowsPath(text).drive)


def wait_until_writable(file: Any) -> None:
    """Wait until a pipe or terminal that another program made non-blocking takes more."""
    if WINDOWS:
        time.sleep(0.01)  # select takes only sockets there
    else:
        select.select([], [file], [])


# The machine


def usable_cores() -> int:
    """The CPU cores that this process may use; all if the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The name of the CPU as its maker calls it."""
    found = None
    with suppress(OSError, subprocess.SubprocessError, StopIteration):
        if LINUX:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            found = next(line for line in lines if line.startswith("model name")).split(":", 1)[1]
        elif MAC:
            ask = ["sysctl", "-n", "machdep.cpu.brand_string"]
            found = subprocess.run(ask, capture_output=True, timeout=10, check=True).stdout.decode()
        elif sys.platform == "win32":
            import winreg

            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
                found = str(winreg.QueryValueEx(key, "ProcessorNameString")[0])
    return (found or platform.processor() or platform.machine()).strip()


def peak_process_memory() -> float | None:
    """Peak memory of this process in GiB; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if MAC else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def keep_freed_memory() -> None:
    """Make glibc keep the memory that a step frees, for the next step; no effect without glibc.

    By default glibc returns each large tensor to the operating system, which fills its pages with zeros in every step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if LINUX else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # mallopt(3); not M_MMAP_THRESHOLD, which older versions limit to 32 MiB
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def may_have_gpu() -> bool:
    """Whether torch.cuda may find a GPU: false on Linux if there is no device file of any, without importing torch."""
    names = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")  # the last three: Jetson, AMD, Windows' Linux
    return not LINUX or any(any(Path("/dev").glob(name)) for name in names)


def has_nvidia_gpu() -> bool:
    """Whether a driver shows an NVIDIA GPU, also to a torch that can't use it."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    if (smi := shutil.which("nvidia-smi")) is None:
        return False
    with suppress(OSError, subprocess.SubprocessError):
        return b"GPU 0" in subprocess.run([smi, "-L"], capture_output=True, timeout=20, check=True).stdout
    return False


def has_compiler() -> bool:
    """Whether the C++ compiler works that torch.compile takes."""
    default = "cl" if WINDOWS else "clang++" if MAC else "g++"
    ask = [os.environ.get("CXX", default), *([] if WINDOWS else ["--version"])]
    try:  # a Mac without the command line tools has a clang++ that only fails
        return subprocess.run(ask, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
