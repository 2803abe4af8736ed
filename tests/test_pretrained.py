"""Fine-tuning from weight files on the command line; no run reaches a hub."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from conftest import SMALL_MODEL, Command, run_here
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

from vitlab.models import fuse_timm_attention
from vitlab.models.execution import choose_execution

NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
DATA = ["data=synthetic", "data.train_images=60", "data.test_images=20", "data.val_size=20", "data.batch_size=10"]
SHORT = ["trainer.max_epochs=1", "trainer=cpu", "callbacks.figures.level=off", "preflight=off", *DATA]
PRETRAINED = ["model=vit_pretrained", "model.name=test_vit", *SHORT]


def hide_hub(patch: pytest.MonkeyPatch) -> None:
    """Make the hub unreachable, and its cache empty."""
    patch.setattr("huggingface_hub.constants.ENDPOINT", NO_HUB["HF_ENDPOINT"])
    patch.setattr("vitlab.weights.loading.try_to_load_from_cache", lambda *_: None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network that timm made, of 1000 classes."""
    file = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def run(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run from these weights, which are gone afterwards, as is the hub."""
    folder = tmp_path_factory.mktemp("pretrained")
    shutil.copy(weights, folder / "here.safetensors")
    arguments = [*PRETRAINED, "model.weights=here.safetensors", "finetune=layer_decay", "preflight=strict"]
    with pytest.MonkeyPatch.context() as patch:
        hide_hub(patch)
        result = run_here("train.py", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "weights: 78 of 80 tensors (99.8% of the values) from here.safetensors" in result.stdout
    (folder / "here.safetensors").unlink()
    return next((folder / "outputs" / "vit_pretrained").iterdir())


def test_the_data_settings_follow_the_weights(run: Path) -> None:
    config = OmegaConf.load(run / "config.yaml")
    facts = timm.data.resolve_model_data_config(timm.create_model("test_vit", pretrained=False))
    assert config.data.image_size == facts["input_size"][1] == 160
    assert tuple(config.data.mean) == facts["mean"]
    assert tuple(config.data.std) == facts["std"]
    assert config.data.interpolation == facts["interpolation"]


def test_the_manifest_records_the_weights_and_the_load_report(run: Path, weights: Path) -> None:
    told = json.loads((run / "manifest.json").read_text())["weights"]
    assert told["from"] == "here.safetensors"
    assert len(told["sha256"]) == 64
    assert len(told["loaded"]) == 78
    assert told["new_head"] == ["head.weight", "head.bias"]
    assert told["missing"] == told["unexpected"] == []


def test_evaluation_and_prediction_need_neither_hub_nor_file(
    run: Path, in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_hub(monkeypatch)
    result = in_process("evaluate.py", f"run={run}")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((run / "metrics.json").read_text())
    evaluated = json.loads((run / "evaluation_test.json").read_text())
    assert evaluated["test/loss"] == metrics["test/loss"]
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    checkpoint = run / "checkpoints" / "best.ckpt"
    result = in_process("predict.py", f"checkpoint={checkpoint}", "images=red.png")
    assert result.returncode == 0, result.stderr
    assert "red.png" in result.stdout


def test_data_settings_that_differ_from_the_weights_are_warned_about(weights: Path, in_process: Command) -> None:
    choice = ["data.mean=[0.485,0.456,0.406]", "data.image_size=32", "trainer.max_steps=1"]
    result = in_process("train.py", *PRETRAINED, f"model.weights={weights}", *choice)
    assert result.returncode == 0, result.stderr
    told = result.stderr
    known_by = "timm's test_vit.r160_in1k"  # the file itself says nothing of its images
    mean = (
        f"data.mean=[0.485, 0.456, 0.406], but {known_by} was trained with [0.5, 0.5, 0.5]; data.mean=null takes that"
    )
    assert mean in told
    assert f"data.image_size=32, but {known_by} was trained with 160; data.image_size=null takes that" in told
    assert "data.std" not in told
    assert "resampled: pos_embed" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.name=vit_bse_patch16_224"], "Did you mean 'vit_base_patch16_224'?"),
        (["model.name=test_vit.nope"], "timm has no weights 'nope' of test_vit; it has r160_in1k"),
        (["model.weights=nowhere.pth"], "model.weights=nowhere.pth does not exist"),
        (["model.name=null"], "model.name=null must be text"),
        (["model.name=local-dir:here"], "use model.weights=<file>"),
        (["model.name='hf-hub:a b'"], "a b: no name of a repository"),
        (["model.pretrained=false", "data.image_size=100"], "takes no images of image_size=100 px"),
        (["model.pretrained=false", "finetune.layer_decay=2"], "layer_decay=2"),
        (
            ["model.pretrained=false", "finetune.layer_decay=x"],
            "finetune.layer_decay=x must be a number above 0 and at most 1",
        ),
        (["model.pretrained=false", "finetune.freeze_epochs=0.5"], "freeze_epochs=0.5 must be a whole number"),
        (["model._target_=torchvision.models.resnet18"], "data.image_size must be given"),
        (
            ["model.pretrained=false", "trainer.max_epochs=-1", "trainer.max_steps=5", "scheduler.interval=epoch"],
            "scheduler.interval=epoch needs the run's length in epochs",
        ),
        (["model.pretrained=false", "model.kwargs={dpth: 3}"], "unexpected keyword argument 'dpth'"),
    ],
    ids=str,
)
def test_mistakes_end_in_one_sentence(
    arguments: list[str], message: str, in_process: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hide_hub(monkeypatch)
    result = in_process("train.py", *PRETRAINED, *arguments)
    assert result.returncode == 2
    *warnings, line = result.stderr.strip().splitlines()
    assert message in line
    assert all("was trained with" in warning for warning in warnings)


def test_an_unreachable_hub_names_the_file_and_the_option(in_process: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_hub(monkeypatch)
    result = in_process("train.py", "model=vit_pretrained")
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: Could not download the weights of vit_base_patch16_224.augreg2_in21k_ft_in1k")
    assert "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k/resolve/main/model.safetensors" in line
    assert line.endswith("model.weights=<file>")


def test_weights_in_which_nothing_fits_are_refused(weights: Path, in_process: Command) -> None:
    result = in_process("train.py", "model=vit_scratch", *SMALL_MODEL, *SHORT, f"model.weights={weights}")
    assert result.returncode == 2
    assert "nothing in" in result.stderr
    assert "fits the model" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_vitlab_checkpoint_initialises_another_run(small_run: Path, in_process: Command) -> None:
    checkpoint = small_run / "checkpoints" / "best.ckpt"
    sizes = [*SMALL_MODEL, "model.mlp_ratio=2.0"]
    result = in_process(
        "train.py", "model=vit_scratch", *sizes, *SHORT, f"model.weights={checkpoint}", "finetune=head_only"
    )
    assert result.returncode == 0, result.stderr
    assert "weights: 30 of 30 tensors (100.0% of the values)" in result.stdout
    assert "does not say" not in result.stdout


def test_layers_that_stay_random_are_warned_about(small_run: Path, in_process: Command) -> None:
    checkpoint = small_run / "checkpoints" / "best.ckpt"
    sizes = [*SMALL_MODEL, "model.mlp_ratio=2.0", "model.depth=3"]
    result = in_process("train.py", "model=vit_scratch", *sizes, *SHORT, f"model.weights={checkpoint}", "debug=fast")
    assert result.returncode == 0, result.stderr
    assert "WARNING: weights: 30 of 42 tensors" in result.stderr
    assert "missing in the file, random here: blocks.2.norm1.weight" in result.stderr


OWN = """
import torch

class Own(torch.nn.Module):
    def __init__(self, num_classes, weights="mine", pretrained="too"):
        super().__init__()
        assert (weights, pretrained) == ("yes", "so")
        self.head = torch.nn.Linear(3 * 32 * 32, num_classes)

    def forward(self, images):
        return self.head(images.flatten(1))

class Plain(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = torch.nn.Linear(3 * 32 * 32, num_classes)

    def forward(self, images):
        return self.head(images.flatten(1))
"""


def test_models_may_have_their_own_weights_and_pretrained_arguments(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_weights.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["model._target_=own_weights.Own", "model.weights=yes", "+model.pretrained=so", "debug=fast"]
    result = in_process("train.py", *SHORT, *arguments)
    assert result.returncode == 0, result.stderr


def test_a_user_model_starts_from_a_file(in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_weights.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    state = {"head.weight": torch.zeros(10, 3072), "head.bias": torch.arange(10.0) / 10}
    torch.save(state, tmp_path / "own.pth")
    arguments = ["model._target_=own_weights.Plain", "model.weights=own.pth", "debug=fast"]
    result = in_process("train.py", *SHORT, *arguments)
    assert result.returncode == 0, result.stderr
    assert "weights: 2 of 2 tensors (100.0% of the values) from own.pth" in result.stdout
    assert "does not say how its images were normalised: using data.mean and data.std" in result.stdout


@pytest.mark.parametrize(
    ("precision", "choice", "fused"),
    [("bf16-mixed", None, False), ("bf16-true", None, False), ("32-true", None, True), ("bf16-mixed", True, True)],
)
def test_timm_attention_uses_the_faster_kernel_on_a_cpu(precision: str, choice: bool | None, fused: bool) -> None:
    network = timm.create_model("test_vit", pretrained=False)
    config = OmegaConf.create(
        {
            "gradient_checkpointing": False,
            "compile": False,
            "model": {"fused_attention": choice},
            "trainer": {"accelerator": "cpu", "precision": precision},
        }
    )
    images = torch.randn(2, 3, 160, 160)
    before = network.eval()(images)
    choose_execution(config, network)
    assert {block.attn.fused_attn for block in network.blocks} == {fused}
    torch.testing.assert_close(network(images), before, atol=1e-4, rtol=1e-4)


def test_attributes_named_like_timms_switch_stay_unchanged() -> None:
    class Own(torch.nn.Module):
        def fused_attn(self) -> str:
            return "mine"

    network = torch.nn.Sequential(Own())
    fuse_timm_attention(network, False)
    assert network[0].fused_attn() == "mine"
