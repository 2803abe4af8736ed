import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from vitlab.data import folder_layout
from vitlab.data.decoding import image_suffixes
from vitlab.data.folder_layout import FolderLayout, list_images, read_layout
from vitlab.errors import UserError


def draw(*files: Path) -> None:
    """Write a small PNG to each path, whatever its name."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file, format="png")


def fill(root: Path, *folders: str, names: Sequence[str] = ("1.png", "2.png")) -> Path:
    """Put images into folders; those that end in / stay empty."""
    draw(*(root / folder / name for folder in folders if not folder.endswith("/") for name in names))
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    return root


def of(root: Path, *folders: str) -> list[str]:
    return [f"{folder}/{cls}" for folder in folders for cls in ("ant", "bee")]


def counts(layout: FolderLayout) -> dict[str, int]:
    return dict(Counter(file.split for file in layout.files))


def refusal(root: Path, given: Iterable[str] | None = None) -> str:
    with pytest.raises(UserError) as error:
        read_layout(root, None if given is None else list(given))
    return str(error.value)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train", "val", "test"], {"train", "val", "test"}),
        (["Train", "Valid", "TEST"], {"train", "val", "test"}),
        (["training", "validation", "testing"], {"train", "val", "test"}),
        (["Training_Set", "test-set", "val data"], {"train", "val", "test"}),
        (["train_images", "dev"], {"train", "val"}),
        (["train", "validate", "test"], {"train", "val", "test"}),
        (["train", "evaluation"], {"train", "val"}),
        (["train", "test"], {"train", "test"}),
        (["train"], {"train"}),
        (["seg_train/seg_train", "seg_test/seg_test", "seg_pred/seg_pred"], {"train", "test"}),
        (["asl_train/asl_train"], {"train"}),
        (["pets/train", "pets/val"], {"train", "val"}),
        (["train/images", "val/images"], {"train", "val"}),
        (["train2017", "val2017"], {"train", "val"}),
    ],
    ids=lambda value: str(sorted(value)),
)
def test_splits_are_found_under_their_usual_names(folders: list[str], expected: set[str], tmp_path: Path) -> None:
    layout = read_layout(fill(tmp_path, *of(tmp_path, *folders)), None)
    assert layout.classes == ["ant", "bee"]
    assert set(layout.folders) == expected
    assert set(layout.folders.values()) <= set(folders)
    assert set(counts(layout).values()) == {4}


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (["ant", "bee"], ["ant", "bee"]),
        (["bus", "train", "test"], ["bus", "test", "train"]),  # images lie in them: classes, not splits
        (["bullet_train/2019", "bullet_train/2020", "car/2019"], ["bullet_train", "car"]),
        (["pets/ant", "pets/bee"], ["ant", "bee"]),
        (["images/ant", "images/bee", "meta/"], ["ant", "bee"]),
        (["a [1] (x)", "größe 日本 🐝", "b=c,d"], ["a [1] (x)", "b=c,d", "größe 日本 🐝"]),
        (["10", "9", "2"], ["2", "9", "10"]),  # by value
        (["10", "9", "x"], ["10", "9", "x"]),
    ],
    ids=str,
)
def test_without_splits_the_folders_are_the_classes(folders: list[str], classes: list[str], tmp_path: Path) -> None:
    layout = read_layout(fill(tmp_path, *folders), None)
    assert layout.classes == classes
    assert counts(layout) == {"train": 2 * sum(not folder.endswith("/") for folder in folders)}


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    layout = read_layout(fill(tmp_path, "train/test", "train/train", "test/test", "test/train"), None)
    assert layout.classes == ["test", "train"]
    assert counts(layout) == {"train": 4, "test": 4}


def test_a_given_order_of_classes_is_kept_and_may_have_more(tmp_path: Path) -> None:
    root = fill(tmp_path, "train/1", "train/10", "train/2")
    layout = read_layout(root, ["1", "10", "2", "30"])
    assert layout.classes == ["1", "10", "2", "30"]
    assert {Path(file.name).parts[1]: file.label for file in layout.files} == {"1": 0, "10": 1, "2": 2}
    assert read_layout(root, ["1", "2"]).classes == ["1", "2", "10"]  # the data module refuses them


def test_names_that_look_alike_are_one_class_if_only_their_unicode_form_differs(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    layout = read_layout(fill(tmp_path, f"train/{composed}", "train/bar", f"test/{decomposed}", "test/bar"), None)
    assert layout.classes == ["bar", composed]
    assert counts(layout) == {"train": 4, "test": 4}


def test_classes_that_differ_in_case_are_named(tmp_path: Path) -> None:
    layout = read_layout(fill(tmp_path, "Ant", "ant", "bee"), None)
    assert layout.classes == ["Ant", "ant", "bee"]
    assert any("Ant, ant" in note for note in layout.notes)


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (["train/ant", "train/bee", "test/elk"], ["test", "lacks", "elk"]),
        (["train/ant", "train/bee", "val/Ant", "val/bee"], ["val", "lacks", "Ant", "'ant'"]),
        (["train/ant", "Train/bee"], ["Train/", "train/"]),
        (["train/ant", "train/bee", "val/ant", "valid/ant"], ["val/", "valid/"]),
        (["val/ant", "test/ant"], ["no class folders", "train"]),
        (["ant/train", "ant/test", "bee/train", "bee/test"], ["ant has splits", "test, train"]),
        (["train", "test"], ["no class folders", "train"]),
        ([], ["no class folders"]),
    ],
    ids=str,
)
def test_a_wrong_layout_is_refused(folders: list[str], parts: list[str], tmp_path: Path) -> None:
    said = refusal(fill(tmp_path, *folders))
    assert all(part in said for part in parts)
    assert "\n" not in said


@pytest.mark.parametrize("split", ["train/", ""])
def test_an_empty_class_folder_is_refused_with_what_it_holds(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)  # as without the extra
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
    monkeypatch.setattr(folder_layout, "image_suffixes", image_suffixes.__wrapped__)
    root = fill(tmp_path, f"{split}ant", f"{split}bee")
    (root / split / "cow").mkdir()
    (root / split / "cow" / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    said = refusal(root)
    assert str(root / split / "cow") in said
    assert "1 .heic" in said
    assert "pillow-heif" in said


@pytest.mark.parametrize("kind", ["no folder", "file"])
def test_a_root_that_is_no_folder_is_refused(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "pets.zip"
    if kind == "file":
        root.touch()
    said = refusal(root)
    assert str(root) in said
    assert ("unpacked" in said) == (kind == "file")


def test_an_empty_or_unlabelled_split_is_not_used_and_said(tmp_path: Path) -> None:
    root = fill(tmp_path, "train/ant", "train/bee", "test", "val/images")
    layout = read_layout(root, None)
    assert set(layout.folders) == {"train"}
    assert any("test/" in note and "val/" in note for note in layout.notes)
    (root / "val").rename(root / "extra")
    (root / "valid" / "ant").mkdir(parents=True)
    layout = read_layout(root, None)
    assert set(layout.folders) == {"train"}
    assert any(str(root / "valid") in note for note in layout.notes)


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    root = fill(tmp_path, "train/ant", "train/bee")
    hidden = ["ant/.ipynb_checkpoints/1-checkpoint.png", "ant/._1.png", "ant/__MACOSX/3.png", "ant/4.png~"]
    draw(*(root / "train" / name for name in (*hidden, "ant/@eaDir/5.png", ".trash/6.png", "__MACOSX/ant/7.png")))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / "train" / "ant" / name).write_text("x")
    layout = read_layout(root, None)
    assert layout.classes == ["ant", "bee"]
    assert counts(layout) == {"train": 4}
    assert layout.notes == []


def test_the_content_decides_and_other_files_are_counted_by_kind(tmp_path: Path) -> None:
    folder = tmp_path / "ant"
    images = ["a.JPG", "b.jpeg", "c.webp", "d.bmp", "no_suffix", "e.unknown", "f.PNG", "deep/er/g.png", "h.2024-01-01"]
    draw(*(folder / name for name in images))  # all are PNG
    for name in ("1.txt", "2.TXT", "3.svg", "LICENSE", "4.mp4", "5.h5"):
        (folder / name).write_text("no image")
    Image.new("RGB", (8, 8)).save(folder / "6.dng", format="tiff")  # of a camera: only a thumbnail
    (folder / "empty").touch()
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.txt").symlink_to("nowhere")
    left_out: Counter[str] = Counter()
    found = list_images(folder, left_out)
    assert sorted(path.removeprefix(f"{folder}/") for path, *_ in found) == sorted(images)
    assert {kind: count for kind, count in left_out.items() if count} == {
        **{".txt": 2, ".svg": 1, ".mp4": 1, ".h5": 1, ".dng": 1, "without ending": 2},
        **{"special file": 1, "broken link": 1},
    }


def test_images_beside_the_class_folders_are_said(tmp_path: Path) -> None:
    root = fill(tmp_path, "train/ant", "train/bee", "train")
    layout = read_layout(root, None)
    assert counts(layout) == {"train": 4}
    assert any("2 in no class folder" in note for note in layout.notes)
    draw(root / "3.png")  # beside train/
    assert any("3 in no class folder" in note for note in read_layout(root, None).notes)


@pytest.mark.parametrize("folders", [["ant", "bee"], ["train/ant", "train/bee"]])
def test_a_folder_of_decoded_images_is_no_class(folders: list[str], tmp_path: Path) -> None:
    root = fill(tmp_path, *folders)
    cache = tmp_path / folders[0] / ".." / "cache"
    cache.mkdir()
    for name in ("32.npy", "32.json", "64.part", "64.part.json", "auto32.txt"):
        (cache / f"{'0a' * 12}-{name}").touch()
    layout = read_layout(root, None)
    assert (layout.classes, layout.notes) == (["ant", "bee"], [])
    draw(cache / "1.png")
    assert read_layout(root, None).classes == ["ant", "bee", "cache"]


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "train/ant", "train/bee")
    elsewhere = fill(tmp_path / "elsewhere", "a", "b/deep", "split/ant", "split/bee")
    (root / "train" / "ant" / "more").symlink_to(elsewhere / "a")
    (elsewhere / "a" / "other").symlink_to(elsewhere / "b")
    (elsewhere / "b" / "back").symlink_to(elsewhere / "a")
    (root / "train" / "ant" / "circle").symlink_to("../..")
    (root / "train" / "cow").symlink_to(elsewhere / "b")
    (root / "val").symlink_to(elsewhere / "split")
    (root / "train" / "bee" / "one.png").symlink_to(elsewhere / "a" / "1.png")
    (root / "train" / "dangling").symlink_to("nowhere")
    layout = read_layout(root, None)
    by_class = Counter((file.split, layout.classes[file.label]) for file in layout.files)
    assert by_class == {
        **{("train", "ant"): 6, ("train", "bee"): 3, ("train", "cow"): 4},
        **{("val", "ant"): 2, ("val", "bee"): 2},
    }
    assert any("read already" in note for note in layout.notes)
    assert len({file.path for file in layout.files}) == len(layout.files)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir = fill(tmp_path, "train/ant", "train/bee"), os.scandir

    def refuse(path: Path | str) -> object:  # root may read everything
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert re.search(r"train/bee.*Permission denied", refusal(root))


def test_names_that_are_no_utf8_are_read_and_printable(tmp_path: Path) -> None:
    root = fill(tmp_path, "ant", "bee")
    os.rename(os.fsencode(root / "ant" / "1.png"), os.fsencode(root / "ant") + b"/gr\xf6\xdfe.png")  # noqa: PTH104
    layout = read_layout(root, None)
    assert len(layout.files) == 4
    assert all(Path(file.path).exists() for file in layout.files)
    assert all(file.name.encode() for file in layout.files)
