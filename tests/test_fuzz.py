"""Whatever lies in a file or is typed: it works, or ends with a sentence."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SMALL_RUN
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from vitlab.config.compose import CONF
from vitlab.data.decoding import describe_failure, read_image
from vitlab.errors import UserError
from vitlab.runs.checkpoint import CONFIG_KEY, read_checkpoint
from vitlab.runs.directory import RunDirectory
from vitlab.runs.overrides import apply_overrides

MANY = 500  # slow: some minutes, most of them for the configs, a fifth of a second each
FEW = 30


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes changed, cut off, doubled or replaced."""
    result = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        match draw.randint(0, 3):
            case 0 if result:
                result[draw.randrange(len(result))] = draw.randrange(256)
            case 1:
                del result[draw.randint(0, len(result)) :]
            case 2:
                place = draw.randint(0, len(result))
                result[place:place] = result[: draw.randint(0, 100)]
            case 3:
                result += draw.randbytes(draw.randint(0, 50))
    return bytes(result)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_damaged_files(count: int, tmp_path: Path) -> None:
    draw = random.Random(0)
    torch.save({CONFIG_KEY: {"model": {}, "data": {}}, "state_dict": {"w": torch.randn(200)}}, tmp_path / "good.ckpt")
    Image.effect_noise((40, 40), 50).convert("RGB").save(tmp_path / "good.jpg")
    (tmp_path / "good.yaml").write_text(yaml.safe_dump({"run_dir": "x", "model": {"depth": 3}, "names": ["a", "b"]}))
    (tmp_path / "good.json").write_text('{"status": "finished", "finished": "2026-01-01", "data": {"train": {}}}')
    good = {suffix: (tmp_path / f"good.{suffix}").read_bytes() for suffix in ("ckpt", "jpg", "yaml", "json")}
    run = tmp_path / "run"
    run.mkdir()
    looks: list[Callable[[], object]] = [
        partial(read_checkpoint, run / "last.ckpt"),
        lambda: RunDirectory.open(str(run), "outputs").config(),
        lambda: RunDirectory(run).manifest(),
        lambda: RunDirectory.open("latest", str(tmp_path)),
    ]
    said = []
    for _ in range(count):
        (run / "last.ckpt").write_bytes(damaged(good["ckpt"], draw))
        (run / "photo.jpg").write_bytes(damaged(good["jpg"], draw))
        (run / "config.yaml").write_bytes(damaged(good["yaml"], draw))
        (run / "manifest.json").write_bytes(damaged(good["json"], draw))
        for look in looks:
            try:
                look()
            except UserError as error:  # anything else fails the test
                said.append(str(error))
        try:
            read_image(run / "photo.jpg")
        except Exception as error:  # all are caught where images are read
            said.append(describe_failure(error))
    print(f"{5 * count} files, {len(said)} refused")
    assert all(said)
    assert count < len(said) < 5 * count


VALUES = ["-1", "0", "1e400", "nan", "null", "true", "abc", "[]", "{}", "[1,a]", "''", "1.5", "${x}", "../..", "9" * 30]


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_any_value_in_any_place(count: int) -> None:
    draw = random.Random(1)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*SMALL_RUN, "name=x", "run_dir=x"])
    plain = OmegaConf.to_container(config, resolve=False)

    def paths(node: object, path: str = "") -> list[str]:
        if not isinstance(node, dict) or not node:
            return [path]
        return [p for key, value in node.items() for p in paths(value, f"{path}.{key}" if path else str(key))]

    places, said = paths(plain), []
    command = OmegaConf.create({"run": "x"})
    for _ in range(count):
        typed = f"{draw.choice(places)}={draw.choice(VALUES)}"
        try:
            overrides = OverridesParser.create().parse_overrides([typed])
        except Exception:  # Hydra's grammar: the entry point explains it
            continue
        try:
            apply_overrides(OmegaConf.create(plain), overrides, command)
        except UserError as error:
            said.append(str(error))
    print(f"{count} values, {len(said)} refused")
    assert all(said)
    assert len(said) > count / 4
