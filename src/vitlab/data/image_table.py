"""Image files and their classes in a CSV table."""

import csv
import os
from pathlib import Path
from typing import Any

from vitlab.data.folder_layout import SPLITS, FolderLayout, ImageFile, class_of, split_of
from vitlab.data.image_folder import ImageFolderDataModule
from vitlab.errors import UserError, did_you_mean
from vitlab.files import expand_home


class CSVDataModule(ImageFolderDataModule):
    """Images that a CSV file lists, a line each, with their class and, in a third column, their split.

    Raises:
        UserError: the file, the root or a column is missing, or a cell is empty.

    Args:
        file: The CSV file, with a line of headings.
        root: Folder that the paths in it begin at; None is the folder of the file.
        path_column, label_column: Headings of the paths and of the classes.
        split_column: Heading of `train`, `val` or `test`. With None all images are training images, as with "split" if
            no heading contains that word.
        **shared: See `ImageFolderDataModule`.
    """

    def __init__(
        self,
        *,
        file: str,
        root: str | None,
        path_column: str,
        label_column: str,
        split_column: str | None,
        **shared: Any,
    ) -> None:
        self.file = Path(expand_home(file))
        super().__init__(root=str(self.file.parent) if root is None else root, **shared)
        self.columns = {"path_column": path_column, "label_column": label_column}
        self.split_column = split_column

    def layout(self) -> FolderLayout:
        try:
            with self.file.open(newline="", encoding="utf-8-sig") as lines:
                reader = csv.DictReader(lines, skipinitialspace=True)
                rows = [(reader.line_num, row) for row in reader]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"data.file={self.file} can't be read ({error})") from error
        headings = [str(name) for name in reader.fieldnames or []]
        wanted = dict(self.columns)
        others = set(headings) - set(wanted.values())
        is_like = any("split" in name.casefold() for name in others)
        if self.split_column is not None and (self.split_column != "split" or is_like):
            wanted["split_column"] = self.split_column
        for key, name in wanted.items():
            if name not in headings:
                none = "; null makes all images training images" if key == "split_column" else ""
                hint = did_you_mean(name, headings)
                raise UserError(f"data.{key}={name}: {self.file} has the columns {', '.join(headings)}{none}{hint}")
        if not os.path.isdir(self.root):  # noqa: PTH112 (Path.is_dir may raise)
            raise UserError(f"data.root={self.root}: there is no folder {self.root}")
        path_column, label_column = self.columns.values()
        split_column = self.split_column if self.split_column in headings else None
        entries = []
        for number, row in rows:
            path, label = row[path_column], class_of((row[label_column] or "").strip())
            split = "train" if split_column is None else split_of((row[split_column] or "").strip())
            if not path or not label or split is None:
                raise UserError(
                    f"{self.file}, line {number}: it needs a path, a class, and train, val or test as split"
                )
            entries.append((path, label, split))
        found = sorted({label for _, label, _ in entries}, key=lambda name: (name.isdecimal() and int(name), name))
        classes = list(self.classes) if self.classes and set(found) <= set(self.classes) else found
        files = []
        for path, label, split in entries:
            full = self.root / path
            status = full.stat() if os.path.isfile(full) else None  # noqa: PTH113 (as above; decoding reports it)
            size, modified = (status.st_size, status.st_mtime_ns) if status else (0, 0)
            files.append(ImageFile(str(full), size, modified, path, split, classes.index(label)))
        folders = {split: str(self.file) for split in SPLITS if any(file.split == split for file in files)}
        if "train" not in folders:
            raise UserError(f"{self.file} lists no training image")
        return FolderLayout(folders, classes, files, [])

    def _place(self, folder: str) -> str:
        return folder  # the file
