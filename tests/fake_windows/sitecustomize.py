"""Python on Linux as vitlab would find it on Windows, for processes with this folder in PYTHONPATH.

It hides functions and modules from vitlab's code, and refuses what Windows refuses: replacing or removing an open or
mapped file, syncing one that is open for reading, symbolic links, some file names. Paths, consoles and newlines stay
those of Linux.
"""

import builtins
import errno
import fcntl
import importlib.abc
import importlib.machinery
import os
import platform
import re
import select
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog")
NAMES: dict[ModuleType, tuple[str, ...]] = {
    os: (
        *("fork", "forkpty", "killpg", "getuid", "geteuid", "getgid", "getpgid", "getpgrp", "setsid", "setpgid"),
        *("uname", "sched_getaffinity", "sched_setaffinity", "statvfs", "mkfifo", "getloadavg", "nice", "wait"),
        *("WIFEXITED", "chown", "fchmod", "chroot", "sysconf", "posix_fallocate", "sendfile", "openpty"),
    ),
    signal: (
        *("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGSTOP", "SIGCONT", "SIGQUIT", "SIGPIPE", "SIGCHLD"),
        *("setitimer", "alarm", "pause", "pthread_kill", "pthread_sigmask", "siginterrupt", "sigwait", "ITIMER_REAL"),
    ),
}
BAD_NAME = re.compile(r'.*[<>:"|?*\\\x00-\x1f].*|.*[. ]|(con|prn|aux|nul|com\d|lpt\d)(\..*)?', re.IGNORECASE)
SIGBREAK = signal.SIGTTIN  # it has the same number
SIGNALS = {*map(signal.Signals, (2, 4, 6, 8, 11, 15)), SIGBREAK}  # those of Windows
SIGKILL, NEW_GROUP = signal.SIGKILL, 0x200

# The real ones, which the imitations use.
os_kill, os_replace, os_rename, os_unlink, os_fsync = os.kill, os.replace, os.rename, os.unlink, os.fsync
os_mkdir, os_open, real_select, real_import, real_system = (
    *(os.mkdir, os.open, select.select),
    *(builtins.__import__, platform.system),
)


def is_ours(caller: Any) -> bool:
    return str((caller or {}).get("__name__")).split(".")[0] in ("vitlab", "hydra_plugins")


def hide(module: ModuleType, names: tuple[str, ...]) -> None:
    """Remove names from a module for vitlab's code; libraries still find them, as sys.platform says linux."""
    hidden = {name: module.__dict__.pop(name) for name in names if hasattr(module, name)}

    def find(name: str) -> Any:
        if name not in hidden or is_ours(sys._getframe(1).f_globals):
            raise AttributeError(f"module '{module.__name__}' has no attribute '{name}'")
        return hidden[name]

    module.__getattr__ = find  # type: ignore[method-assign]


def windows_import(name: str, caller: Any = None, *others: Any, **options: Any) -> Any:
    if name in MODULES and is_ours(caller):
        raise ModuleNotFoundError(f"No module named '{name}'")
    return real_import(name, caller, *others, **options)


def refuse_if_open(path: Any, *, inside: bool = False) -> None:
    """As Windows, if this process has a file open or mapped; not for the locks of filelock."""
    used, real = set(), os.path.realpath(os.fspath(path))
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            used.add(str(link.readlink()))
    with Path("/proc/self/maps").open(encoding="utf-8") as maps:
        used |= {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/" in line}
    for file in used:
        if file == real or (inside and file.startswith(f"{real}/")):
            raise PermissionError(errno.EACCES, "[WinError 32] another process uses it", str(path))


def check_name(path: Any) -> None:
    for part in Path(os.fsdecode(path)).parts if not isinstance(path, int) else ():
        if part not in ("/", "..") and BAD_NAME.fullmatch(part):
            raise OSError(errno.EINVAL, "[WinError 123] the name is wrong", os.fsdecode(path))


def windows_replace(source: Any, target: Any, **options: Any) -> None:
    check_name(target)
    if Path(target).is_dir():
        raise PermissionError(errno.EACCES, "[WinError 5] access is denied", str(target))
    refuse_if_open(source, inside=True)
    refuse_if_open(target)
    os_replace(source, target, **options)


def windows_rename(source: Any, target: Any, **options: Any) -> None:
    check_name(target)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "[WinError 183] it exists already", str(target))
    refuse_if_open(source, inside=True)
    os_rename(source, target, **options)


def windows_unlink(path: Any, **options: Any) -> None:
    if options.get("dir_fd") is None and not str(path).endswith(".lock"):
        refuse_if_open(path)
    os_unlink(path, **options)


def windows_fsync(file: int) -> None:
    if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "bad file descriptor: it is open for reading")
    os_fsync(file)


def windows_mkdir(path: Any, *arguments: Any, **options: Any) -> None:
    check_name(path)
    os_mkdir(path, *arguments, **options)


def windows_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
    if flags & os.O_CREAT:
        check_name(path)
    return os_open(path, flags, *arguments, **options)


def windows_symlink(*_: Any, **__: Any) -> None:
    raise OSError(errno.EINVAL, "[WinError 1314] a required privilege is not held by the client")


def windows_kill(process: int, number: int) -> None:
    """Windows ends the process at any number but those of Ctrl-C and Ctrl-Break."""
    os_kill(process, {0: signal.SIGINT, 1: SIGBREAK}.get(int(number), SIGKILL))


def windows_select(read: Any, write: Any, *others: Any) -> Any:
    if any(hasattr(file, "readinto") or isinstance(file, int) for file in (*read, *write)):
        raise OSError(errno.ENOTSOCK, "[WinError 10038] this is no socket")
    return real_select(read, write, *others)


class WindowsPopen(subprocess.Popen):  # type: ignore[type-arg]
    def __init__(self, *arguments: Any, **options: Any) -> None:
        if options.get("preexec_fn") is not None:
            raise ValueError("preexec_fn is not supported on Windows platforms")
        options["start_new_session"] = bool(options.pop("creationflags", 0) & NEW_GROUP)
        super().__init__(*arguments, **options)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            windows_kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    kill = terminate


class AsWindows(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules that ask once for the system while it seems to be Windows."""

    def __init__(self) -> None:
        self.loaders: dict[str, Any] = {}

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in ("vitlab.system", "lightning_fabric.utilities.imports"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            self.loaders[name], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: Any) -> Any:
        return None

    def exec_module(self, module: Any) -> None:
        platform.system, sys.platform = (lambda: "Windows"), "win32"
        try:
            self.loaders[module.__name__].exec_module(module)
        finally:
            platform.system, sys.platform = real_system, "linux"


def imitate() -> None:
    for module, names in NAMES.items():
        hide(module, names)
    signal.SIGBREAK, signal.CTRL_C_EVENT, signal.CTRL_BREAK_EVENT = SIGBREAK, 0, 1  # type: ignore[attr-defined]
    signal.valid_signals = lambda: SIGNALS
    builtins.__import__ = windows_import
    select.select = windows_select
    subprocess.Popen = WindowsPopen  # type: ignore[misc]
    subprocess.CREATE_NEW_PROCESS_GROUP = NEW_GROUP  # type: ignore[attr-defined]
    os.replace, os.rename, os.unlink, os.remove = windows_replace, windows_rename, windows_unlink, windows_unlink
    os.fsync, os.mkdir, os.open, os.symlink = windows_fsync, windows_mkdir, windows_open, windows_symlink
    os.kill = windows_kill
    sys.meta_path.insert(0, AsWindows())
    warnings.filterwarnings("error", category=EncodingWarning, module=r"vitlab\..*")


imitate()
