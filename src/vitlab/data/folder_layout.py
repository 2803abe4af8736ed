"""The splits, classes and image files of a folder."""

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vitlab.data.decoding import CACHE_FILE, HEIC, RAW, has_image, image_suffixes
from vitlab.errors import UserError, list_some, nearest

SPLITS = ("train", "val", "test")
# train, Training, valid, test_set, seg_train ...
SPLIT_NAME = re.compile(
    r"(?P<prefix>(.*[-_. ])?)"
    r"((?P<train>train(ing)?)|(?P<val>val(id(at(e|ion))?)?|eval(uation)?|dev)|(?P<test>test(ing)?))"
    r"([-_. ]?(set|split|data|images|folder|\d+))?",
    re.IGNORECASE,
)
PLAIN_NAMES = {"images", "imgs", "unlabeled", "unlabelled", "unknown"}  # of a folder around classes, or without them
# What systems and programs leave in folders, besides names that begin with a dot.
JUNK = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
JUNK |= {"__pycache__"}

File = tuple[str, int, int]  # path, bytes, time of the last change in ns: to recognise changes by


class ImageFile(NamedTuple):
    """An image of a split and class."""

    path: str
    size: int
    modified_ns: int
    name: str  # relative to the root, as it can be printed
    split: str
    label: int


@dataclass(frozen=True)
class FolderLayout:
    """The images in a folder, by split and class."""

    folders: dict[str, str]  # of each split that has one, relative to the root; "." if the classes lie in the root
    classes: list[str]
    files: list[ImageFile]
    notes: list[str]  # what is left out


def read_layout(root: Path, given_classes: Sequence[str] | None) -> FolderLayout:
    """Find the images of `root/train/<class>/`, `root/val/<class>/` and `root/test/<class>/`, or `root/<class>/`.

    Splits may have other usual names, and lie in one more folder, as archives are often packed. The classes have the
    order of `given_classes` if these include all that are found; else numbers are sorted by value, and text as text.

    Raises:
        UserError: there are no images, a class has none, or `train/` lacks a class of the others.
    """
    folders, notes = _find_splits(root)
    places = {*folders.values(), *(str(above) for folder in folders.values() for above in Path(folder).parents)}
    listed = {place: _list(root / place) for place in places}
    left_out = Counter({"in no class folder": sum(_count_images(loose) for _, loose in listed.values())})
    found: dict[str, dict[str, list[File]]] = {split: {} for split in folders}
    for split, folder in folders.items():
        for name in listed[folder][0]:
            own = found[split].setdefault(class_of(name), [])
            own += list_images(root / folder / name, left_out)
    reason = describe_left_out(left_out)
    notes += [f"left out: {reason}"] if reason else []
    for split in [split for split, own in found.items() if split != "train" and not any(own.values())]:
        notes.append(f"not used: {root / folders.pop(split)} (no images)")

    classes, train = _order_classes(found["train"], given_classes), root / folders["train"]
    for split, folder in folders.items():
        if unknown := sorted(name for name, files in found[split].items() if files and name not in classes):
            hint = nearest(unknown[0], classes)
            raise UserError(f"{root / folder} has classes that {train} lacks: {list_some(unknown)}{hint}")
    if empty := [f"{train / name}" for name, files in found["train"].items() if not files]:
        left = f" (left out: {reason})" if reason else ""
        raise UserError(f"no image files in the class folder {list_some(empty)}{left}: add some, or remove it")
    spellings = Counter(name.casefold() for name in classes)
    if alike := [name for name in classes if spellings[name.casefold()] > 1]:
        notes.append(f"different classes, although only upper and lower case differ: {', '.join(alike)}")
    return FolderLayout(
        folders,
        classes,
        [
            ImageFile(*file, _printable(file[0].removeprefix(f"{root}{os.sep}")), split, label)
            for split in folders
            for label, name in enumerate(classes)
            for file in sorted(found[split].get(name, []))
        ],
        notes,
    )


def class_folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder by the names of their classes, without what is hidden; none if there is no folder."""
    names = _list(folder)[0] if folder.is_dir() else []
    return {class_of(name): folder / name for name in names}


def list_images(top: Path, left_out: Counter[str]) -> list[File]:
    """The image files in a folder and those below, without what is hidden; counts other files by their kind.

    Links are followed, but no folder is read twice. If a suffix says nothing, the content decides.
    """
    known, real = image_suffixes(), os.path.realpath(top)
    seen, found, todo = {real, *map(str, Path(real).parents)}, [], [str(top)]
    while todo:
        folder = todo.pop()
        folders, files = _list(folder)
        # Strings: pathlib takes ten times as long for 60,000 files.
        for path in (f"{folder}{os.sep}{name}" for name in folders):
            if (real := os.path.realpath(path)) in seen:
                left_out["linked folder that is read already"] += 1
            else:
                seen.add(real)
                todo.append(path)
        for name in files:
            path, suffix = f"{folder}{os.sep}{name}", _suffix(name)
            try:
                status = os.stat(path)  # noqa: PTH116
            except OSError:  # a broken link: of an image, decoding reports it
                found += [(path, 0, 0)] if suffix in known else []
                left_out["broken link"] += suffix not in known
                continue
            is_file = stat.S_ISREG(status.st_mode)
            if is_file and (suffix in known or (suffix not in RAW and has_image(path))):
                found.append((path, status.st_size, status.st_mtime_ns))
            else:
                left_out[(suffix or "without ending") if is_file else "special file"] += 1
    return sorted(found)


def describe_left_out(left_out: Counter[str]) -> str:
    """`2 .txt, 1 .svg`; empty if there are none."""
    kinds = [f"{count:,} {kind}" for kind, count in left_out.most_common() if count]
    hint = "; HEIC needs: pip install pillow-heif" if any(left_out[kind] for kind in HEIC) else ""
    return f"{list_some(kinds, 8)}{hint}" if kinds else ""


def split_of(name: str) -> str | None:
    """The split that a name such as `Training` or `valid` means; None if it means none."""
    match = SPLIT_NAME.fullmatch(name)
    return next(split for split in SPLITS if match[split]) if match else None


def class_of(name: str) -> str:
    """The class of a folder. Archives made on a Mac write é as two characters, others as one."""
    return unicodedata.normalize("NFC", _printable(name))


def _find_splits(root: Path) -> tuple[dict[str, str], list[str]]:
    """The folders of the splits, relative to `root`, and notes of what is not used."""
    if not os.path.isdir(root):  # noqa: PTH112 (Path.is_dir may raise)
        packed = " (it is a file; an archive must be unpacked)" if os.path.isfile(root) else ""  # noqa: PTH113
        raise UserError(f"data.root={root}: there is no folder {root}{packed}")
    top = _unwrap(root, lambda name: not SPLIT_NAME.fullmatch(name))
    inside = _list(top)[0]
    groups: dict[str, dict[str, str]] = {}  # the folder of each split, by the prefix of their names
    for name in inside:
        if (match := SPLIT_NAME.fullmatch(name)) and _list(top / name)[0]:
            split = str(split_of(name))
            if other := groups.setdefault(match["prefix"].lower(), {}).get(split):
                raise UserError(f"data.root={root}: {other}/ and {name}/ could both be the {split} images")
            groups[match["prefix"].lower()][split] = name
    # A prefix counts only if splits share it (seg_train, seg_test), or nothing else is there: bullet_train is a class.
    usable = [
        group
        for prefix, group in sorted(groups.items())
        if "train" in group and (not prefix or len(group) > 1 or len(inside) == 1)
    ]
    if not usable:
        if inside and "" not in groups and not all(map(SPLIT_NAME.fullmatch, inside)):
            for name in inside:
                if {"train"} < (own := {split_of(inner) for inner in _list(top / name)[0]} - {None}):
                    raise UserError(
                        f"{top / name} has splits of its own ({', '.join(sorted(map(str, own)))}), which would all be "
                        f"trained on: give data.root={top / name}, or move the images of a class to {top}/train/{name}"
                    )
            return {"train": str(top.relative_to(root))}, []
        raise UserError(
            f"data.root={root}: there are no class folders in {top / 'train' if inside else top}; vitlab reads "
            f"{root}/train/<class>/*, with val/ and test/ if they exist, or {root}/<class>/*"
        )
    folders: dict[str, str] = {}
    known: list[str] = []
    for split in filter(usable[0].get, SPLITS):
        folder = _unwrap(top / usable[0][split], partial(_is_plain, known=known))
        inner = _list(folder)[0]
        known = known or inner
        if split == "train" or len(inner) != 1 or not _is_plain(inner[0], known):
            folders[split] = str(folder.relative_to(root))
    unused = [f"{name}/" for name in inside if name not in map(usable[0].get, folders)]
    return folders, [f"not used: {list_some(unused)} (no class folders of a split)"] if unused else []


def _unwrap(folder: Path, is_wrapper: Callable[[str], bool]) -> Path:
    """Descend while only one folder has folders, and no other images, as in `pets/pets/train/`, or `images/` beside
    `meta/`; all must have names of wrappers."""
    while True:
        inner = _list(folder)[0]
        deep = [name for name in inner if _list(folder / name)[0]]
        if len(deep) != 1 or not all(map(is_wrapper, inner)):
            return folder
        files = [name for place in {".", *inner} - set(deep) for name in _list(folder / place)[1]]
        if _count_images(files):
            return folder
        folder /= deep[0]


def _is_plain(name: str, known: Sequence[str]) -> bool:
    """Whether a folder has the name of a split or no name, but not that of a known class."""
    return name not in known and bool(SPLIT_NAME.fullmatch(name) or name.lower() in PLAIN_NAMES)


def _order_classes(found: Iterable[str], given: Sequence[str] | None) -> list[str]:
    names = sorted(found)
    if given is not None and set(names) <= set(given):
        return list(given)
    return sorted(names, key=int) if all(map(str.isdecimal, names)) else names


def _list(folder: Path | str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, links followed, without what is hidden and what holds decoded
    images; sorted."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.endswith("~") or entry.name.lower() in JUNK:
                    continue
                is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # noqa: PTH112
                if not is_folder:
                    files.append(entry.name)
                elif not _is_cache(entry.path):
                    folders.append(entry.name)
    except OSError as error:
        raise UserError(f"can't read the folder {folder} ({error.strerror})") from error
    return sorted(folders), sorted(files)


def _is_cache(folder: str) -> bool:
    """Whether a folder holds decoded images, and nothing else that is not hidden."""
    with suppress(OSError), os.scandir(folder) as entries:
        names = (entry.name for entry in entries if not entry.name.startswith("."))
        return bool(CACHE_FILE.fullmatch(next(names, ""))) and all(map(CACHE_FILE.fullmatch, names))
    return False


def _count_images(names: Iterable[str]) -> int:
    known = image_suffixes()
    return sum(_suffix(name) in known for name in names)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _printable(name: str) -> str:
    """A name without the bytes that are no UTF-8, as in archives of old Windows versions."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
