"""Exports travel to a hub on localhost and back, by huggingface_hub's own client."""

from pathlib import Path

import pytest
import timm
import torch
from conftest import HUB_NAME, SMALL_RUN, Command
from fake_hub import READER, WRITER, HubServer, use_hub
from huggingface_hub import ModelCard, constants
from PIL import Image
from test_export import open_run

import vitlab
from vitlab.errors import UserError
from vitlab.weights import hub

EXPORT = "src/vitlab/export.py"
PLAIN = ["trainer=cpu", "trainer.precision=32-true"]
PIXELS = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def online(hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A hub that this process is logged in to."""
    use_hub(hub_server.address, tmp_path / "huggingface", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return hub_server


def test_a_pushed_model_gives_the_same_logits_to_timm_and_to_vitlab(
    online: HubServer, small_run: Path, in_process: Command, tmp_path: Path
) -> None:
    arguments = [f"run={small_run}", "out=here", "push_to_hub=user/first", "license=MIT", "private=true"]
    result = in_process(EXPORT, *arguments)
    assert result.returncode == 0, result.stderr
    assert f"{online.address}/user/first" in result.stdout
    assert online.private == {"user/first"}
    assert online.commits["user/first"] == [
        {"header None", "file README.md", "file config.json", "lfsFile model.safetensors"}
    ]

    expected = open_run(small_run).logits(PIXELS)
    theirs = timm.create_model("hf-hub:user/first", pretrained=True).eval()
    inputs = open_run(small_run).preprocess(PIXELS)
    torch.testing.assert_close(theirs(inputs), expected, atol=1e-5, rtol=0)
    again = open_run("hf-hub:user/first")
    torch.testing.assert_close(again.logits(PIXELS), expected, atol=1e-5, rtol=0)
    assert again.classes == open_run(small_run).classes

    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    for verb in ("predict.py", "src/vitlab/explain.py"):
        result = in_process(verb, "run=hf-hub:user/first", "images=red.png")
        assert result.returncode == 0, result.stderr
    label = vitlab.load("hf-hub:user/first").predict(tmp_path / "red.png").label
    assert label == vitlab.load(small_run).predict(tmp_path / "red.png").label
    card = ModelCard.load("user/first")
    assert (card.data.license, card.data.library_name) == ("mit", "timm")
    assert "hf-hub:user/first" in card.text


def test_training_starts_from_a_model_of_the_hub(
    online: HubServer, small_run: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_process(EXPORT, f"run={small_run}", "out=here", "push_to_hub=user/start").returncode == 0
    data = [argument for argument in SMALL_RUN if argument.startswith(("data.", "callbacks."))]
    short = ["data=synthetic", *data, "trainer.max_steps=1", "preflight=off", *PLAIN]
    named = ["model=vit_pretrained", "model.name=hf-hub:user/start", "hydra.run.dir=second", "optimizer.lr=1e-9"]
    result = in_process("train.py", *named, *short)
    assert result.returncode == 0, result.stderr
    assert "(100.0% of the values) from hf-hub:user/start" in result.stdout
    expected = open_run(small_run).logits(PIXELS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in (
        "second",
        "hf-hub:user/start",
    ):  # a run does not need the hub again, and the hub's client has a cache
        torch.testing.assert_close(open_run(source).logits(PIXELS), expected, atol=1e-4, rtol=0)


def test_a_second_push_is_a_new_commit_without_files_of_the_first_model(online: HubServer, tmp_path: Path) -> None:
    def push(*names: str, private: bool = False) -> str:
        for name in names:
            (tmp_path / name).write_text(f"{name} {len(online.commits)} {names}")
        files = [tmp_path / name for name in names]
        return hub.push(files, "user/model", private=private, replaced=["model.onnx", "README.md"], message="x")

    assert "created" in push("README.md", "model.onnx")
    folder = tmp_path / "hub" / "user" / "model" / "resolve" / "main"
    (folder / "notes.txt").write_text("the user's own")
    assert "history" in push("README.md", "config.json")
    assert online.commits["user/model"][-1] == {
        "header None",
        "file README.md",
        "file config.json",
        "deletedFile model.onnx",
    }
    assert {file.name for file in folder.iterdir()} == {"README.md", "config.json", "notes.txt"}
    with pytest.raises(UserError, match="is public"):
        push("README.md", private=True)
    assert len(online.commits["user/model"]) == 2


@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        (["push_to_hub=user/name"], None, "needs a token"),
        (["push_to_hub=name"], WRITER, "push_to_hub=<user>/name"),
        (["push_to_hub=a/b/c"], WRITER, "push_to_hub=a/b/c"),
        (["push_to_hub=7"], WRITER, "push_to_hub=7"),
        (["private=true"], WRITER, "private=true needs push_to_hub"),
        (["private=maybe", "push_to_hub=user/name"], WRITER, "private=maybe"),
        (["license=3"], WRITER, "license=3"),
    ],
    ids=str,
)
def test_mistakes_are_found_before_anything_is_written(
    arguments: list[str],
    token: str | None,
    message: str,
    online: HubServer,
    in_process: Command,
    small_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    result = in_process(EXPORT, f"run={small_run}", "out=here", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("here").exists()
    assert online.commits == {}


@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        (["push_to_hub=user/name"], READER, "write access"),
        (["push_to_hub=other/name"], WRITER, "must be yours"),
        (["push_to_hub=user/name"], "hf_expired", "does not accept your token"),
        (["push_to_hub=user/name", "license=MIT-0.5"], WRITER, "license"),
        (["push_to_hub=user/name"], "offline", "HF_HUB_OFFLINE"),
        (["push_to_hub=user/name"], "gone", "can't reach the hub"),
    ],
    ids=str,
)
def test_a_refused_push_gets_a_sentence_and_keeps_the_export(
    arguments: list[str],
    token: str,
    message: str,
    online: HubServer,
    in_process: Command,
    small_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", token == "offline")
    if token == "gone":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    result = in_process(EXPORT, f"run={small_run}", "out=here", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "hf upload" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert {file.name for file in Path("here").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert not any(online.commits.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:user/nothing", "no such repository"),
        (f"hf-hub:timm/{HUB_NAME}", "lacks config.json"),
        ("hf-hub:a b", "no name of a repository"),
    ],
)
def test_a_model_that_the_hub_lacks_gets_a_sentence(
    name: str, message: str, online: HubServer, in_process: Command
) -> None:
    result = in_process("predict.py", f"run={name}", "images=photo.jpg")
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
