"""Files that are either whole or not there."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vitlab.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; on leaving, that file is on disk and takes `path`'s place in one step.

    Where the block raises, `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # a link that a stranger left there would be followed
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, refusal: str) -> Iterator[None]:
    """Keeps other processes out of a folder; the operating system ends that with the process.

    Raises:
        UserError: one is there already; its message is `refusal`.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(refusal) from None
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def new_file(out: str | None, default: str) -> Path:
    """Where a command writes to: `out`, or where that is None `default`, in which `{time}` becomes the time.

    Raises:
        UserError: there is such a file.
    """
    file = Path(out or default.format(time=time.strftime("%Y-%m-%d_%H-%M-%S")))
    if file.exists():
        raise UserError(f"out={file} is there already: nothing is overwritten")
    return file


def set_aside(path: Path, *, keep: bool = False) -> None:
    """Renames a file that is about to be written anew: its own time goes into its name. Nothing saved is lost.

    With `keep` it stays where it is too, for a file that must be there at any moment.
    """
    if path.exists():
        written = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(path.stat().st_mtime))
        older = path.with_name(f"{path.stem}_{written}{path.suffix}")
        count = 1
        while older.exists():
            count += 1
            older = path.with_name(f"{path.stem}_{written}_{count}{path.suffix}")
        if keep:
            shutil.copy2(path, older)
        else:
            path.rename(older)


def folder_for(base: Path, *names: str) -> Path:
    """Makes `base`, or where that holds one of the files, the first of `base_2`, `base_3` ... that does not.

    Raises:
        UserError: it can't be made.
    """
    folder, count = base, 1
    while any((folder / name).exists() for name in names):
        count += 1
        folder = base.with_name(f"{base.name}_{count}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't write to {folder} ({error.strerror}): name another folder with out=...") from error
    return folder


def shorten(path: Path) -> str:
    """A path as one types it from here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
