import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.modules import NEUTRAL
from PIL import Image

from vitlab.data import ImageFolderDataModule
from vitlab.errors import UserError


def make(root: Path, **changes: Any) -> ImageFolderDataModule:
    own = {"test_size": 0.25, "cache_dir": None, "skip_unreadable": False}
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
    with pytest.raises(UserError, match="4 image files"):
        make(image_root)


def test_without_test_folder_a_stratified_split_is_held_out(image_root: Path) -> None:
    for file in (image_root / "test").rglob("*.png"):
        file.unlink()
    data = make(image_root)
    assert torch.bincount(data.splits["test"].labels).tolist() == [3, 3, 3]
    names = [name for split in data.splits.values() for name in split.names]
    assert len(names) == len(set(names)) == 36


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


def test_cache_dir_holds_the_decoded_images(image_root: Path, tmp_path: Path) -> None:
    make(image_root, cache_dir=str(tmp_path / "here"))
    assert len(list((tmp_path / "here").glob("*.npy"))) == 1
    assert not (image_root / ".vitlab_cache").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train").rename(root / "Training"), "there is no folder"),
        (lambda root: (root / "test" / "ant").rename(root / "test" / "elk"), "lacks: elk"),
    ],
)
def test_a_wrong_layout_is_refused(image_root: Path, spoil: Any, message: str) -> None:
    spoil(image_root)
    with pytest.raises(UserError, match=message):
        make(image_root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 10}, "data.num_classes=10, but the data has 3 classes"),
        ({"batch_size": 28}, "data.batch_size=28 is more than the 27 training images"),
        ({"val_size": 36}, "change data.val_size"),
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
