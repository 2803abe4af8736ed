"""Atomic file writes, locks, and names for new files."""

import csv
import errno
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vitlab.errors import UserError
from vitlab.system import flush_to_disk, name_fault, replace

PACKAGE = Path(__file__).parent
IS_CLONE = not (PACKAGE / "clone").is_dir()  # a wheel has a copy of what the package needs of a clone
ROOT = PACKAGE.parents[1] if IS_CLONE else PACKAGE / "clone"  # of train.py and conf/
CONF = ROOT / "conf"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`; at the end of the block that file replaces `path` in one step. If the
    block raises, `path` is unchanged."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # a link there, in somebody else's run, would be followed
    try:
        yield temporary
        flush_to_disk(temporary)
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def locked(folder: Path, refusal: str) -> AbstractContextManager[Any]:
    """Locks a folder against other processes; the operating system releases the lock of a killed process.

    Raises:
        UserError: another process holds the lock; `refusal` is the message.
    """
    try:
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise UserError(refusal) from None


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        # File names may hold any bytes. No carriage returns: the file is the same on all systems.
        temporary.write_text(text, encoding="utf-8", errors=sys.getfilesystemencodeerrors(), newline="\n")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())


def new_file(out: str | None, default: str) -> Path:
    """The file that a command writes: `out`, or if that is None `default`, with the time in place of `{time}`.

    Raises:
        UserError: the file exists, or its folder can't be made.
    """
    file = Path(out or default.format(time=time.strftime("%Y-%m-%d_%H-%M-%S")))
    if file.exists():
        raise UserError(f"out={file} is there already: nothing is overwritten, choose another name")
    make_folder(file.parent)
    return file


def make_folder(folder: Path, key: str = "out") -> None:
    """Make a folder, with those above it, that can be written to; UserError that names a `key` for another one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        reason = name_fault(folder) or error.strerror
        raise UserError(f"can't write to {folder} ({reason}): choose another folder with {key}=...") from error


def set_aside(path: Path, *, keep: bool = False) -> None:
    """Renames a file that is about to be replaced: its modification time is appended to its name. With `keep` it is
    copied instead, for a file that must exist at any moment."""
    if path.exists():
        written = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(path.stat().st_mtime))
        names = numbered(f"{path.stem}_{written}", path.suffix)
        older = next(file for file in map(path.with_name, names) if not file.exists())
        if keep:
            shutil.copy2(path, older)
        else:
            path.rename(older)


def folder_for(base: Path, *names: str, key: str = "out") -> Path:
    """Makes `base`, or if that holds one of the files, the first of `base_2`, `base_3` ... that holds none.

    Raises:
        UserError: the folder can't be made.
    """
    folders = (base.parent / name for name in numbered(base.name))
    folder = next(folder for folder in folders if not any((folder / name).exists() for name in names))
    make_folder(folder, key)
    return folder


def numbered(name: str, suffix: str = "") -> Iterator[str]:
    """`name`, `name_2`, `name_3` ..."""
    yield name + suffix
    yield from (f"{name}_{number}{suffix}" for number in count(2))


def expand_home(text: str) -> str:
    """A path with the home folder in place of a leading `~`; Path.expanduser fails for a file called `~x`."""
    return os.path.expanduser(text)  # noqa: PTH111


def shorten(path: Path) -> str:
    """A path as short as you can type it here: relative if it lies below the working directory."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
