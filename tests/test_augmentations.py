import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Command
from PIL import Image

from vitlab.augmentations import apply_each
from vitlab.data.random_augment import OPERATIONS

DATA = ["data=synthetic", "data.train_images=60", "data.test_images=20", "data.val_size=20", "data.batch_size=4"]
SCRIPT = "src/vitlab/augmentations.py"


def test_a_sheet_is_written_and_never_overwritten(in_process: Command, tmp_path: Path) -> None:
    result = in_process(SCRIPT, *DATA, "augment=strong", "augment.mixing.p=1", "out=sheet.png")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "written: sheet.png\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 800
        assert len(sheet.convert("RGB").getcolors(1 << 24) or []) > 100
    again = in_process(SCRIPT, *DATA, "out=sheet.png")
    assert again.returncode == 2
    assert "out=sheet.png is there already" in again.stderr


def test_new_keys_are_taken_and_classes_may_lack_images(image_root: Path, in_process: Command, tmp_path: Path) -> None:
    mine = ["+augment.rotate._target_=torchvision.transforms.v2.RandomRotation", "+augment.rotate.degrees=15"]
    folder = [
        "data=image_folder",
        f"data.root={image_root}",
        "data.classes=[aardvark,ant,bee,cow]",
        "data.batch_size=4",
    ]
    result = in_process(SCRIPT, *folder, *mine, "out=sheet.png")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "sheet.png").exists()
    refused = in_process(SCRIPT, *folder, "+out=other.png")
    assert refused.returncode == 2
    assert "+out=other.png" in refused.stderr


def test_every_operation_has_a_row_of_rising_strength() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = dict(apply_each(images, torch.arange(3)))
    flips = ["RandomHorizontalFlip", "RandomHorizontalFlip, alternating"]
    batched = ["RandomVerticalFlip", "RandomResizedCrop", "ColorJitter", "RandomGrayscale", "GaussianBlur"]
    assert list(rows) == ["RandomCrop", *flips, *batched, *OPERATIONS[1:], "RandomErasing", "mixup", "CutMix"]
    for name, panels in rows.items():
        changes = [(batch.float() - images.float()).abs().mean().item() for _, batch in panels]
        if name in ("AutoContrast", "Equalize", "Invert"):
            assert len(set(changes)) == 1
        elif name in ("mixup", "CutMix"):
            kept = [float(caption.split("%")[0]) for caption, _ in panels]
            assert sorted(changes) == [change for _, change in sorted(zip(kept, changes, strict=True), reverse=True)]
            assert max(changes) > 20
        elif name in (
            *("Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize"),
            *("RandomErasing", "RandomHorizontalFlip", *batched),
        ):
            assert changes == sorted(changes)
            assert changes[2] > changes[0]


@pytest.mark.parametrize("key", ["agument=none", "data.lrr=1"])
def test_unknown_keys_are_refused(key: str, in_process: Command) -> None:
    result = in_process(SCRIPT, *DATA, key)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_help_does_not_import_torch() -> None:
    program = (
        "import runpy, sys; sys.argv[1:] = ['--help']\n"
        "try: runpy.run_module('vitlab.augmentations', run_name='__main__')\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "python -m vitlab.augmentations" in result.stdout
