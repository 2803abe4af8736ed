import json
import os
import re
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data.modules import NEUTRAL
from PIL import Image

from vitlab.data import ImageFolderDataModule, decoding
from vitlab.data.decoding import DecodedCache, DecodedFile, decode_files
from vitlab.data.folder_layout import read_layout
from vitlab.errors import UserError


def make(root: Path, **changes: Any) -> ImageFolderDataModule:
    own = {"test_size": None, "cache_dir": None, "skip_unreadable": False}
    data = ImageFolderDataModule(root=str(root), **{**NEUTRAL, **own, **changes})
    data.prepare_data()
    data.setup()
    return data


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.data.decoding.read_image", lambda path: pytest.fail(f"decoded {path} again"))


def test_pixels_labels_and_names_match_the_files(image_root: Path) -> None:
    data = make(image_root)
    assert data.spec.classes == ["ant", "bee", "cow"]
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 27, "val": 9, "test": 12}
    for split in data.splits.values():
        for image, label, name in zip(split.pick(slice(None)), split.labels.tolist(), split.names, strict=True):
            assert Path(name).parts[1] == data.spec.classes[label]
            file = np.asarray(Image.open(image_root / name)).transpose(2, 0, 1)
            assert np.array_equal(image.numpy(), file)
    assert all(name.startswith("test/") for name in data.splits["test"].names)


def test_mean_and_std_are_measured_on_the_training_images(image_root: Path) -> None:
    data = make(image_root)
    pixels = data.splits["train"].pick(slice(None)).double() / 255
    assert data.spec.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=1e-4)
    assert data.spec.std == pytest.approx(pixels.std(dim=(0, 2, 3)).tolist(), abs=1e-3)


def test_a_second_start_decodes_nothing(image_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(image_root)
    forbid_decoding(monkeypatch)
    second = make(image_root)
    for split in ("train", "val", "test"):
        assert first.splits[split].fingerprint() == second.splits[split].fingerprint()


@pytest.mark.parametrize("change", ["content", "new file", "removed file", "renamed class"])
def test_changed_files_are_noticed(image_root: Path, change: str) -> None:
    before = make(image_root)
    file = image_root / "train" / "ant" / "00.png"
    if change == "content":
        stamp = file.stat().st_mtime_ns + 1_000_000
        Image.new("RGB", (32, 32)).save(file)
        os.utime(file, ns=(stamp, stamp))
    elif change == "new file":
        Image.new("RGB", (32, 32)).save(image_root / "test" / "ant" / "new.png")
    elif change == "removed file":
        (image_root / "test" / "ant" / "00.png").unlink()
    else:
        for split in ("train", "test"):
            (image_root / split / "ant").rename(image_root / split / "zebra")
    after = make(image_root)
    assert any(before.splits[s].fingerprint() != after.splits[s].fingerprint() for s in before.splits)


def test_the_names_of_the_classes_are_not_those_of_the_cache(image_root: Path) -> None:
    found = make(image_root).spec.classes
    assert make(image_root, classes=[*found, "zebra"]).spec.classes == [*found, "zebra"]
    assert make(image_root).spec.classes == found


def test_a_finished_run_s_config_finds_the_same_decoded_images(
    image_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(image_root)
    forbid_decoding(monkeypatch)
    make(image_root, stored_size=32)  # as evaluation does, with the size from the run


def test_temporary_files_of_a_killed_process_are_deleted(image_root: Path) -> None:
    cache = image_root / ".vitlab_cache"
    cache.mkdir()
    for name, age in ((".old-32.npy.7.tmp", 7200), (".new-32.npy.8.tmp", 60)):
        (cache / name).touch()
        os.utime(cache / name, (time.time() - age,) * 2)
    make(image_root)
    assert [file.name for file in cache.glob(".*.tmp")] == [".new-32.npy.8.tmp"]


def altered(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"[1]", altered])
@pytest.mark.parametrize("suffix", ["32.npy", "32.json", "auto32.txt"])
def test_damaged_decoded_images_are_decoded_again(
    suffix: str, damage: Any, image_root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(image_root)
    before, spec = {name: split.fingerprint() for name, split in data.splits.items()}, data.spec
    del data  # its memory is the mapped file
    (file,) = (image_root / ".vitlab_cache").glob(f"*-{suffix}")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    after = make(image_root)
    assert before == {name: split.fingerprint() for name, split in after.splits.items()}
    assert spec == after.spec
    if suffix != "auto32.txt":  # a damaged size is not worth a warning
        assert "are damaged" in caplog.text
        assert file.read_bytes() == whole
    forbid_decoding(monkeypatch)
    make(image_root)


def test_unreadable_files_are_all_named_and_refused_or_skipped(image_root: Path) -> None:
    broken = [image_root / "train" / "ant" / "broken.png", image_root / "test" / "cow" / "empty.jpg"]
    broken[0].write_text("no image")
    broken[1].touch()
    whole = (image_root / "train" / "bee" / "00.png").read_bytes()
    broken.append(image_root / "train" / "bee" / "cut.png")
    broken[2].write_bytes(whole[: len(whole) // 2])
    broken.append(image_root / "train" / "bee" / "nowhere.png")
    broken[3].symlink_to(image_root / "gone.png")
    with pytest.raises(UserError) as refusal:
        make(image_root)
    assert "4 image files can't be read" in str(refusal.value)
    assert "data.skip_unreadable=true" in str(refusal.value)
    assert all(str(file) in str(refusal.value) for file in broken)
    data = make(image_root, skip_unreadable=True)
    assert sum(len(split) for split in data.splits.values()) == 48
    assert [image_root / name for name in data.unreadable] == sorted(broken, key=lambda file: "test" in file.parts)
    assert any("4 unreadable" in note and "train/ant/broken.png" in note for note in data.notes)
    with pytest.raises(UserError, match="4 image files"):
        make(image_root)


@pytest.mark.parametrize("layout", ["train", "flat", "empty test"])
def test_without_test_images_a_stratified_split_is_held_out_and_said(layout: str, image_root: Path) -> None:
    for file in (image_root / "test").rglob("*.png"):
        file.unlink()
    if layout != "empty test":
        shutil.rmtree(image_root / "test")
    data = make(image_root if layout != "flat" else image_root / "train", test_size=0.25)
    assert torch.bincount(data.splits["test"].labels).tolist() == [3, 3, 3]
    names = [name for split in data.splits.values() for name in split.names]
    assert len(names) == len(set(names)) == 36
    assert "test: 0.25" in data.notes[0]
    assert "data.test_size" in data.notes[0]
    assert len(make(data.root).splits["test"]) == 4  # a tenth by default
    assert len(make(data.root, test_size=0).splits["test"]) == 0


def test_val_folder_is_the_validation_split(image_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image_root / "test").rename(image_root / "Valid")
    data = make(image_root)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 36, "val": 12, "test": 0}
    assert all(name.startswith("Valid/") for name in data.splits["val"].names)
    assert f"splits of {image_root}: train from train/, val from Valid/, no test images" in capsys.readouterr().out
    cut = make(image_root, test_size=6)
    assert {name: len(split) for name, split in cut.splits.items()} == {"train": 30, "val": 12, "test": 6}
    assert cut.splits["val"].fingerprint() == data.splits["val"].fingerprint()
    assert len(make(image_root, val_size=0).splits["val"]) == 0


def test_all_three_splits_are_used_as_they_are(image_root: Path) -> None:
    shutil.copytree(image_root / "test", image_root / "val")
    data = make(image_root, test_size=0.5)  # as the config of an earlier version has it
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 36, "val": 12, "test": 12}
    assert data.splits["val"].names == [name.replace("test/", "val/") for name in data.splits["test"].names]


def test_images_of_many_sizes_are_stored_at_the_model_s_size(image_root: Path) -> None:
    Image.new("RGB", (100, 60)).save(image_root / "train" / "ant" / "photo.jpg")
    assert make(image_root, image_size=64).splits["train"].pick(slice(None)).shape[1:] == (3, 64, 64)


def test_small_images_of_one_size_stay_small(image_root: Path) -> None:
    data = make(image_root, image_size=224)
    assert data.spec.stored_size == 32
    batch = data.splits["train"].pick(slice(None))[:2]
    assert data.transform(batch).shape == (2, 3, 224, 224)


def test_a_read_only_root_is_cached_elsewhere(
    image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (image_root / ".vitlab_cache").touch()  # a file where the folder would be: refused even to root
    make(image_root)
    forbid_decoding(monkeypatch)
    make(image_root)
    assert len(list((tmp_path / "home" / ".cache" / "vitlab").glob("*.npy"))) == 1


def test_another_size_than_in_a_read_only_cache_is_stored_elsewhere(
    image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make(image_root)
    beside, home = image_root / ".vitlab_cache", tmp_path / "home" / ".cache" / "vitlab"
    temporary_file = tempfile.TemporaryFile

    def refuse(**options: Any) -> Any:  # root may write everywhere
        if options["dir"] == beside:
            raise PermissionError(13, "Permission denied")
        return temporary_file(**options)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    make(image_root, stored_size=16)
    assert [len(list(folder.glob("*-16.npy"))) for folder in (beside, home)] == [0, 1]
    forbid_decoding(monkeypatch)
    make(image_root)
    make(image_root, stored_size=16)
    assert not list(home.glob("*-32.npy"))


@pytest.mark.parametrize("cache_dir", ["cache", None])
def test_folders_that_share_a_cache_keep_their_own_images(
    cache_dir: str | None, image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    twin = tmp_path / "twin"
    shutil.copytree(image_root, twin)
    for file in image_root.rglob("*.png"):
        content = file.read_bytes()
        other = twin / file.relative_to(image_root)
        Image.fromarray(255 - np.asarray(Image.open(file))).save(other)
        size = max(len(content), other.stat().st_size)  # bytes after the image are no part of it
        for path, has in ((file, content), (other, other.read_bytes())):
            path.write_bytes(has.ljust(size, b"\0"))
            os.utime(path, ns=(0, 0))
    for root in (image_root, twin):
        (root / ".vitlab_cache").touch()  # a file where the folder would be
    shared = None if cache_dir is None else str(tmp_path / cache_dir)
    first, second = (make(root, cache_dir=shared).splits["test"].pick(slice(None)) for root in (image_root, twin))
    assert torch.equal(first, 255 - second)


def test_cache_dir_holds_the_decoded_images(image_root: Path, tmp_path: Path) -> None:
    make(image_root, cache_dir=str(tmp_path / "here"))
    assert len(list((tmp_path / "here").glob("*.npy"))) == 1
    assert not (image_root / ".vitlab_cache").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 10}, "data.num_classes=10, but the data has 3 classes"),
        ({"batch_size": 28}, "data.batch_size=28 is more than the 27 training images"),
        ({"batch_size": 28}, "data.batch_size=16"),
        ({"val_size": 36}, "change data.val_size"),
        ({"val_size": 0.01}, "data.val_size=0.01 of 36 images"),
        ({"max_train_images": 2, "batch_size": 3}, "data.batch_size=2"),
        ({"classes": ["ant", "dog"]}, "no class dog"),
        ({"folds": 37}, "data.folds=37 is more than the 36 training images"),
    ],
    ids=str,
)
def test_config_that_does_not_match_the_data_is_refused(
    image_root: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(image_root, **changes)


def test_max_train_images_keeps_val_and_test(image_root: Path) -> None:
    few, every = make(image_root, max_train_images=6), make(image_root)
    assert torch.bincount(few.splits["train"].labels).tolist() == [2, 2, 2]
    assert few.splits["val"].names == every.splits["val"].names
    assert set(few.splits["train"].names) < set(every.splits["train"].names)


@pytest.mark.parametrize("name", ["???", "${seed}"])
def test_a_class_name_that_a_config_would_read_as_something_else_is_refused(image_root: Path, name: str) -> None:
    for split in ("train", "test"):
        (image_root / split / "ant").rename(image_root / split / name)
    with pytest.raises(UserError, match=re.escape(name)):
        make(image_root)


def test_one_class_is_refused(image_root: Path) -> None:
    for name in ("bee", "cow"):
        shutil.rmtree(image_root / "train" / name)
        shutil.rmtree(image_root / "test" / name)
    with pytest.raises(UserError, match="only one class, ant"):
        make(image_root)


def test_a_file_that_can_be_read_again_is_used(image_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = decoding.read_image

    def refuse(path: Path) -> Image.Image:  # as after a chmod, which changes neither size nor time
        if path.name == "00.png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "read_image", refuse)
        data = make(image_root, skip_unreadable=True)
    assert set(data.unreadable.values()) == {"Permission denied"}
    assert len(data.unreadable) == 6
    assert make(image_root).unreadable == {}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, count: int, error: type[BaseException]) -> list[Path]:
    """Raise an error when so many images were decoded; returns the files that are decoded."""
    read, seen = decoding.read_image, []

    def stop(path: Path) -> Image.Image:
        seen.append(path)
        if len(seen) > count:
            raise error
        return read(path)

    monkeypatch.setattr(decoding, "read_image", stop)
    return seen


@pytest.mark.parametrize("damage", ["", "shorter", "state", "longer"])
def test_an_interrupted_decoding_continues(damage: str, image_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {name: split.fingerprint() for name, split in make(image_root).splits.items()}
    (image_root / "train" / "ant" / "00.png").write_text("no image")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 30, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            make(image_root, skip_unreadable=True)
    (part,) = (image_root / ".vitlab_cache").glob("*.part")
    if damage == "shorter":
        part.write_bytes(part.read_bytes()[:-1])
    elif damage == "state":
        part.with_suffix(".part.json").write_text("{")
    elif damage == "longer":  # written after the state was saved
        part.write_bytes(part.read_bytes() + b"half an image")
    seen = interrupt_after(monkeypatch, 1000, KeyboardInterrupt)
    data = make(image_root, skip_unreadable=True)
    assert (len(seen) < 30) == (damage not in ("shorter", "state"))
    assert list(data.unreadable) == ["train/ant/00.png"]
    assert not list((image_root / ".vitlab_cache").glob("*.part*"))
    assert data.splits["test"].fingerprint() == whole["test"]
    clean = make(image_root, skip_unreadable=True, cache_dir=str(image_root.parent / "clean"))
    assert data.fingerprints() == clean.fingerprints()


def test_a_killed_decoding_continues_from_the_last_saved_state(
    image_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "SAVE_SECONDS", 0.0)
    layout, side = read_layout(image_root, None), 32
    names = [file.name for file in layout.files]
    about = {"splits": ["train"] * 48, "labels": [0] * 48, "names": names, "classes": ["ant"]}
    cache = DecodedCache(image_root, "key")
    snapshot = image_root.parent / "snapshot"

    def decode(start: int) -> Iterator[DecodedFile]:
        for file in decode_files([Path(file.path) for file in layout.files[start:]], side):
            yield file
            if start == 0 and not snapshot.exists() and json.loads(state.read_text())["images"] == 20:
                snapshot.mkdir()  # all that a killed process would leave
                for left in image_root.glob("key*"):
                    shutil.copy(left, snapshot)

    state = image_root / "key-32.part.json"
    state.write_text(json.dumps({"images": 0}))
    whole = cache.write(side, about, decode)
    started = []
    again = DecodedCache(snapshot, "key").write(side, about, lambda start: started.append(start) or decode(start))
    assert started == [20]
    assert np.array_equal(whole.images, again.images)
    assert not whole.images.flags.writeable  # such a map may be larger than the memory


def test_a_disk_that_is_too_small_is_refused_before_decoding(
    image_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forbid_decoding(monkeypatch)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"147\.5 kB.*1\.0 kB are free.*data\.cache_dir"):
        make(image_root)


def test_decoding_holds_few_images_in_memory(tmp_path: Path) -> None:
    for number in range(400):
        file = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(file)
    tracemalloc.start()
    data = make(tmp_path / "images", stored_size=96)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = sum(len(split) for split in data.splits.values()) * 3 * 96 * 96
    assert size > 11e6
    assert peak < 0.5 * size


def test_white_that_differs_between_files_is_said(image_root: Path) -> None:
    def save(name: str, brightest: int) -> None:
        values = np.linspace(0, brightest, 32 * 32).reshape(32, 32).astype(np.uint16)
        Image.fromarray(values).save(image_root / "train" / "ant" / name)

    save("a.png", 60_000)
    assert not any("white differs" in note for note in make(image_root).notes)
    save("b.png", 4_000)
    assert any("white differs" in note for note in make(image_root).notes)
