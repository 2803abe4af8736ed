"""Test data sets that a CSV file lists."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from data.modules import NEUTRAL

from vitlab.data import CSVDataModule
from vitlab.errors import UserError

DEFAULTS: dict[str, Any] = {
    **{"root": None, "path_column": "path", "label_column": "label", "split_column": "split"},
    **{"test_size": None, "cache_dir": None, "skip_unreadable": False},
}


def make(file: Path, **changes: Any) -> CSVDataModule:
    data = CSVDataModule(file=str(file), **{**NEUTRAL, **DEFAULTS, **changes})
    data.prepare_data()
    data.setup()
    return data


def write(file: Path, heading: str, *lines: str) -> Path:
    file.write_text("\n".join([heading, *lines]) + "\n")
    return file


@pytest.fixture
def lines(image_root: Path) -> list[str]:
    files = sorted(path.relative_to(image_root) for path in image_root.rglob("*.png"))
    return [f"{file},{file.parts[1]},{file.parts[0]}" for file in files]


def test_a_table_gives_the_splits_and_classes_of_the_folders(image_root: Path, lines: list[str]) -> None:
    table = write(image_root / "labels.csv", "path,label,split", *lines)
    data = make(table)
    assert data.spec.classes == ["ant", "bee", "cow"]
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 27, "val": 9, "test": 12}
    for split in data.splits.values():
        assert [data.spec.classes.index(Path(name).parent.name) for name in split.names] == split.labels.tolist()
    validated = image_root / "other.csv"
    validated.write_text("path,label,split\n" + "\n".join(line.replace(",test", ",valid") for line in lines))
    assert len(make(validated).splits["val"]) == 12
    assert f"val from {validated}, " in make(validated).notes[0]  # no folder


def test_all_are_training_images_only_if_no_column_may_tell_the_split(image_root: Path, lines: list[str]) -> None:
    for heading in ("dataset_split", "Split"):
        table = write(image_root / "labels.csv", f"path,label,{heading}", *lines)
        with pytest.raises(UserError, match=rf"data\.split_column=split.*{heading}"):
            make(table)
    with pytest.raises(UserError, match=r"data\.split_column=partitoin.*path, label, Split"):
        make(table, split_column="partitoin")
    assert len(make(table, split_column="Split").splits["test"]) == 12
    assert len(make(table, split_column=None).splits["test"]) == 5  # a tenth of all
    other = write(image_root / "labels.csv", "path,label,site", *lines)
    assert sum(map(len, make(other).splits.values())) == 48


def test_spaces_and_unicode_forms_make_no_classes_of_their_own(image_root: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    labels = [composed, decomposed, f"{composed} ", "bar"] * 3
    rows = (f"train/ant/{number:02d}.png,{label},train " for number, label in enumerate(labels))
    assert make(write(image_root / "labels.csv", "path,label,split", *rows)).spec.classes == ["bar", composed]


def test_columns_root_and_classes_can_be_named(image_root: Path, lines: list[str], tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "kind,file", *(",".join(line.split(",")[1::-1]) for line in lines))
    data = make(table, root=str(image_root), path_column="file", label_column="kind", classes=["cow", "ant"])
    assert data.spec.classes == ["cow", "ant"]
    assert sum(map(len, data.splits.values())) == 32
    assert len(data.splits["test"]) > 0  # held out, as no line says what is for testing


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("image,label\na.png,ant\n", "data.path_column"),
        ("path,label\na.png,\n", "line 2"),
        ("path,label,split\na.png,ant,maybe\n", "line 2"),
        ("path,label,split\na.png,ant,\n", "line 2"),
        ("path,label,split\na.png,ant\n", "line 2"),
        ("path,label\n\n\na.png,\n", "line 4"),
        ("path,label\n" + "a" * 300 + ".png,ant\nb.png,bee\n", "File name too long"),
        ("path,label\na.png,ant\nb.png,bee\n", "no such file"),
        ("path,label,split\na.png,ant,test\n", "no training image"),
    ],
)
def test_a_wrong_table_is_refused_in_one_sentence(content: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(UserError, match=named):
        make(tmp_path / "labels.csv")


def test_a_wrong_root_is_refused_and_not_made(image_root: Path, lines: list[str], tmp_path: Path) -> None:
    table = write(image_root / "labels.csv", "path,label,split", *lines)
    with pytest.raises(UserError, match=r"data\.root=.*nowhere"):
        make(table, root=str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_classes_without_training_images_are_refused(image_root: Path, lines: list[str]) -> None:
    others = ["test/ant/00.png,elk,val", "test/ant/01.png,fox,val"]
    table = write(image_root / "labels.csv", "path,label,split", *lines, *others)
    with pytest.raises(UserError, match=r"data\.classes.*elk, fox"):
        make(table, classes=["elk", "fox"])
