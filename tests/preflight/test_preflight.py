"""Preflight finds common mistakes before training, and raises no false alarms."""

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from config.test_compose import composed
from conftest import ROOT, SMALL_RUN, Command
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitlab.components import build_classifier, load_data
from vitlab.config.instantiate import build, build_network
from vitlab.data import synthetic
from vitlab.data.arrays import ImageArrays
from vitlab.data.synthetic import draw_shapes
from vitlab.experiment import add_data_facts, resolve
from vitlab.preflight import CheckContext, Preflight, Status, run_preflight
from vitlab.runs.checkpoint import read_checkpoint
from vitlab.weights import weights_to_start_from

DATA = ["data=synthetic", "data.train_images=1600", "data.test_images=100", "data.batch_size=32", "trainer=cpu"]
TINY = ["model.patch_size=8", "model.embed_dim=32", "model.depth=2", "model.num_heads=2"]


@pytest.fixture(scope="module", autouse=True)
def _images_are_drawn_once() -> Iterator[None]:
    """Most tests here have the same images; none changes them in place."""
    drawn: dict[Any, torch.Tensor] = {}

    def draw(labels: torch.Tensor, size: int, noise: float, generator: torch.Generator) -> torch.Tensor:
        key = (len(labels), size, noise, generator.initial_seed())
        return drawn[key] if key in drawn else drawn.setdefault(key, draw_shapes(labels, size, noise, generator))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "draw_shapes", draw)
        yield


@cache
def composed_once(*overrides: str) -> DictConfig:
    return composed(Path("nowhere"), *overrides)


def config_of(folder: Path, overrides: Sequence[str]) -> DictConfig:
    """A composed config; one composition serves all networks of `networks.py`."""
    networks = [override for override in overrides if override.startswith("model._target_=preflight.networks.")]
    config = copy.deepcopy(composed_once(*(override for override in overrides if override not in networks)))
    config.run_dir = str(folder)
    for override in networks:
        config.model._target_ = override.partition("=")[2]
    return config


def subject_of(
    folder: Path, *overrides: str, change: Callable[[CheckContext], None] = lambda subject: None
) -> CheckContext:
    """The objects of a run, as `train` builds them."""
    arguments = [*DATA, "trainer.precision=32-true", *overrides]
    config = config_of(folder, arguments)
    torch.manual_seed(0)
    weights = weights_to_start_from(config)
    config = resolve(config, weights, arguments)
    data = load_data(config)
    config = add_data_facts(config, data, {})
    network = build_network(config.model)
    if config.compile:
        network.compile()
    classifier = build_classifier(config, network)
    trainer = build(config.trainer, "trainer", logger=False, callbacks=[], default_root_dir=str(folder))
    subject = CheckContext(
        classifier,
        data,
        trainer,
        expected_input=weights.input if weights else {},
        head_is_loaded=False,
        positions=config.model.get("pos_embed") != "none"
        or bool(config.model.get("rotary") or config.model.get("relative_bias")),
        batch=data.first_batch(torch.device("cpu")),
    )
    change(subject)
    return subject


SHORT_RUN = [*SMALL_RUN, "data.train_images=200", "trainer.max_epochs=1"]


def failures(preflight: Preflight) -> dict[str, str]:
    return {finding.check: f"{finding.figure}: {finding.meaning}" for finding in preflight.failures}


def network(name: str) -> list[str]:
    return [f"model._target_=preflight.networks.{name}"]


FAULTY_NETWORKS = [
    ("NotebookNet", "depends on input", "blocks.0.attention (MultiheadAttention) mixes along the batch axis"),
    ("SoftmaxOverTheBatch", "images are independent", "mixes along the batch axis"),
    ("EndsInSoftmax", "logits", "the model ends in a softmax"),
    ("ThousandClasses", "logits", "with 10 classes, the shape must be [7, 10]"),
    ("NoPositions", "uses positions", "the position embeddings are missing"),
    ("ForgottenParameter", "trainable parameters", "positions is a plain tensor"),
    ("DetachedPatches", "gradients", "zero or missing for 2 of 19 parameters: patches.weight, patches.bias"),
    ("FrozenBackbone", "trainable parameters", "these have requires_grad=False"),
    ("UnusedLayer", "gradients", "left_over.weight"),
    ("LosesTokens", "depends on input", "the gradient reaches 12 of 16 patches"),
    ("LargeStart", "initial loss", "confident of wrong predictions"),
    ("NanGradient", "gradients", "NaN or infinite in"),
    ("Overflows", "logits", "are NaN or infinite"),
    ("WrongSize", "logits", "the model fails on images of shape [7, 3, 32, 32]: RuntimeError"),
    ("Blind", "depends on input", "the logits are the same for every image"),
    ("CutOff", "overfits one batch", "cuts the gradient"),
    ("RandomInEvaluation", "images are independent", "draws random numbers in eval mode"),
    ("ReturnsATuple", "logits", "the model returns a tuple"),
    ("OneColour", "depends on input", "not channel 1, 2: the model ignores a colour channel"),
    ("ConstantHead", "depends on input", "the logits are the same for every image"),
]


@pytest.mark.parametrize(("name", "check", "sentence"), FAULTY_NETWORKS, ids=lambda value: str(value)[:25])
def test_a_faulty_network_fails(name: str, check: str, sentence: str, tmp_path: Path) -> None:
    found = failures(run_preflight(subject_of(tmp_path, *network(name))))
    assert sentence in found.get(check, str(found))


def test_attention_over_the_batch_axis_is_named_even_if_the_logits_differ(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, *network("NotebookNet"), "+model.average=true")
    found = failures(run_preflight(subject))
    assert (
        "blocks.0.attention (MultiheadAttention), or an operation just before it, mixes along"
        in found["images are independent"]
    )


def shuffle_labels(subject: CheckContext) -> None:
    train = subject.data.splits["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    subject.data.splits["train"] = ImageArrays.of(train.pick(slice(None)), train.labels[order], train.names)
    subject.batch = subject.data.first_batch(torch.device("cpu"))


def put_test_images_into_train(subject: CheckContext) -> None:
    train, test = subject.data.splits["train"], subject.data.splits["test"]
    images = torch.cat([train.pick(slice(None))[:-50], test.pick(slice(None))[:50]])
    subject.data.splits["train"] = ImageArrays.of(images, train.labels, train.names)


def count_labels_from_one(subject: CheckContext) -> None:
    train = subject.data.splits["train"]
    subject.data.splits["train"] = ImageArrays.of(train.pick(slice(None)), train.labels + 1, train.names)


def bad_augmentation(kind: str) -> list[str]:
    return [
        "augment.flip._target_=preflight.networks.BadAugmentation",
        "~augment.flip.p",
        f"+augment.flip.kind={kind}",
    ]


FAULTY_DATA = [
    (
        ["data.mean=[0,0,0]", "data.std=[1,1,1]"],
        None,
        "normalisation",
        "mean and standard deviation are far from 0 and 1",
    ),
    (
        ["data.mean=[0,0,0]", "data.std=[0.004,0.004,0.004]"],
        None,
        "normalisation",
        "unscaled images, with values up to 255",
    ),
    (bad_augmentation("nan"), None, "augmentation", "augmented images contain NaN"),
    (bad_augmentation("bright"), None, "augmentation", "augmented values are below black or above white"),
    ([], shuffle_labels, "labels are learnable", "unrelated to the images"),
    ([], put_test_images_into_train, "splits are disjoint", "50 of 100 test images are also in train"),
    ([], count_labels_from_one, "labels", "labels from 1 to 10 for 10 classes"),
]


@pytest.mark.parametrize(("overrides", "change", "check", "sentence"), FAULTY_DATA, ids=lambda v: str(v)[:30])
def test_faulty_data_fails(
    overrides: list[str], change: Callable[[CheckContext], None] | None, check: str, sentence: str, tmp_path: Path
) -> None:
    subject = subject_of(tmp_path, *network("Sound"), *overrides, change=change or (lambda subject: None))
    found = failures(run_preflight(subject))
    assert sentence in found.get(check, str(found))
    assert set(found) <= {check, "uses positions"}  # next to values up to 250, positions of 0.02 are negligible


FAULTY_RECIPES = [
    (["optimizer.lr=0.1"], "learning rate", "the learning rate is too high"),
    (
        ["optimizer=sgd", "optimizer.lr=3", "trainer.gradient_clip_val=null"],
        "learning rate",
        "the learning rate is too high",
    ),
    (["trainer.gradient_clip_val=1e-6"], "clipping", "the clipped gradient is too small to learn from"),
    (
        ["trainer.gradient_clip_val=1e-9", "trainer.gradient_clip_algorithm=value"],
        "clipping",
        "too small to learn from",
    ),
]


@pytest.mark.parametrize(("overrides", "check", "sentence"), FAULTY_RECIPES, ids=lambda value: str(value)[:30])
def test_a_faulty_recipe_fails(overrides: list[str], check: str, sentence: str, tmp_path: Path) -> None:
    found = failures(run_preflight(subject_of(tmp_path, *TINY, *overrides)))
    assert sentence in found.get(check, str(found))
    assert len(found) == 1


def test_a_network_that_fails_in_bfloat16(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, *network("DropsDigits"), "trainer.precision=bf16-mixed")
    found = failures(run_preflight(subject))
    assert "the model does not work in this precision" in found["precision"]
    assert failures(run_preflight(subject_of(tmp_path, *network("DropsDigits")))) == {}


def test_the_readme_counts_the_planted_mistakes() -> None:
    count = len(FAULTY_NETWORKS) + len(FAULTY_DATA) + len(FAULTY_RECIPES) + 1
    page = ROOT / "src" / "vitlab" / "preflight" / "README.md"
    assert f"`tests/preflight` plants {count} mistakes" in page.read_text()


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100_000}))
    found = failures(run_preflight(subject_of(tmp_path, *network("Sound"))))
    assert "the checkpoints would not fit" in found["disk"]


def test_the_default_network_passes_every_check(tmp_path: Path) -> None:
    preflight = run_preflight(subject_of(tmp_path, "data.batch_size=64"))
    assert [f for f in preflight.findings if f.status is not Status.OK] == []


@pytest.mark.slow  # forward and backward passes of large networks: a quarter of an hour on two cores
@pytest.mark.parametrize(
    "choice",
    [
        *(f"model={name}" for name in ("vit_tiny", "vit_small", "vit_base", "vit_hybrid")),
        *(f"experiment={name}" for name in ("demo", "notebook_scratch", "cifar10_finetune", "notebook_pretrained")),
        *(f"experiment=cifar10_{name}" for name in ("gpu_10min", "hybrid_10min", "speedrun_94", "scratch")),
        *(f"experiment=cifar10_cpu_30min{suffix}" for suffix in ("", "_bf16", "_hybrid")),
    ],
)
def test_every_shipped_model_and_experiment_passes(choice: str, in_process: Command) -> None:
    pretrained = ["model.pretrained=false"] if "finetune" in choice or "pretrained" in choice else []
    images = ["data=synthetic", "data.train_images=2000", "data.val_size=0.1"]
    result = in_process("train.py", choice, *images, *pretrained, "trainer=default", "preflight=only")
    assert result.returncode == 0, result.stdout


def test_with_wrong_labels_the_network_is_not_checked(tmp_path: Path) -> None:
    preflight = run_preflight(subject_of(tmp_path, *TINY, change=count_labels_from_one))
    (finding,) = [f for f in preflight.findings if f.status is Status.SKIPPED]
    assert (finding.check, finding.figure) == ("model", "not checked, because the images or labels are wrong")


def test_multiply_adds_are_those_of_the_linear_layers(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, *network("Sound"), "+model.width=512")
    (finding,) = [f for f in run_preflight(subject).findings if f.check == "compute"]
    tokens, width = 16, 512
    patches, block = 3 * 64 * width, 4 * width**2 + 2 * 64 * width + 2 * tokens * width
    count = tokens * (patches + block) + width * 10
    assert finding.figure.endswith(f" {count / 1e9:.2f} G multiply-adds per image (forward)")
    assert count > 0.015e9


def of_timm(name: str) -> list[str]:
    return ["model=vit_pretrained", "model.pretrained=false", f"model.name={name}", "data.image_size=64"]


SOUND = [
    *(network(name) for name in ("Sound", "ZeroHead", "TokensFirst", "ChangesItsInput")),
    TINY,
    [*TINY, "model.pool=cls", "model.pos_embed=learned", "model.drop_path=0.2", "model.dropout=0.1"],
    [*TINY, "model.pos_embed=none"],
    [*TINY, "model.pos_embed=none", "model.rotary=true"],
    [*TINY, "model.pos_embed=none", "model.relative_bias=true"],
    [*TINY, "model.head_hidden_dim=16", "model.qk_norm=true"],
    [*TINY, "model.pool=cls", "model.residual_init=zero"],
    [*TINY, "model.pool=attention", "model.stem=conv", "model.layer_scale=1e-4", "model.patch_dropout=0.5"],
    [*TINY, "model.pool=cls", "model.stem=shifted", "model.registers=2", "model.locality_attention=true"],
    [*TINY, "optimizer=sgd"],
    [*TINY, "optimizer=adam", "scheduler=step", "trainer.gradient_clip_val=null"],
    [*TINY, "finetune=head_only"],
    [*TINY, "finetune=freeze_first"],
    [*TINY, "finetune=layer_decay", "optimizer.lr=5e-5"],
    [*TINY, "augment=none", "data.val_size=0", "data.max_train_images=32"],
    [*TINY, "augment=strong", "augment.mixing.p=1"],
    [*TINY, "compile=true"],
    *map(of_timm, ("test_vit", "test_convnext", "test_resnet", "test_efficientnet")),
    [*of_timm("test_efficientnet"), "data.image_size=32"],
    [*of_timm("test_vit4"), "data.image_size=32", "model.kwargs={patch_size: 8}"],  # LayerScale, no class token
]
ROUNDED = [
    *([*choice, "trainer.precision=bf16-mixed"] for choice in (network("Sound"), TINY, of_timm("test_vit"))),
    [*TINY, "finetune=head_only", "optimizer=sgd", "trainer.precision=bf16-mixed"],
    [*TINY, "trainer.precision=bf16-true"],
]


# One example of each slow kind (4 to 8 s each) runs by default.
SLOW = ("compile=true", "test_resnet", "test_convnext", "model.kwargs={patch_size: 8}", "trainer.precision=bf16-true")


def marked(overrides: list[str]) -> Any:
    text = " ".join(overrides)
    is_slow = any(part in text for part in SLOW) or (overrides in ROUNDED[2:])
    return pytest.param(overrides, marks=[pytest.mark.slow] if is_slow else [], id=text[-45:])


@pytest.mark.parametrize("overrides", [marked(choice) for choice in (*SOUND, *ROUNDED)])
def test_no_false_alarm(overrides: list[str], tmp_path: Path) -> None:
    preflight = run_preflight(subject_of(tmp_path, *overrides))
    assert failures(preflight) == {}
    assert not [f for f in preflight.findings if f.status is Status.SKIPPED and f.check != "labels are learnable"]


def shuffle_half_of_the_labels(subject: CheckContext) -> None:
    train = subject.data.splits["train"]
    labels = train.labels.clone()
    half = len(labels) // 2
    labels[:half] = labels[torch.randperm(half, generator=torch.Generator().manual_seed(0))]
    subject.data.splits["train"] = ImageArrays.of(train.pick(slice(None)), labels, train.names)


def put_mirrored_test_images_into_train(subject: CheckContext) -> None:
    train, test = subject.data.splits["train"], subject.data.splits["test"]
    images = torch.cat([train.pick(slice(None))[:-50], test.pick(slice(None))[:50].flip(-1)])
    subject.data.splits["train"] = ImageArrays.of(images, train.labels, train.names)


NOT_CAUGHT = [
    ([], shuffle_half_of_the_labels),
    ([], put_mirrored_test_images_into_train),
    (["data.mean=[0.4,0.4,0.4]", "data.std=[0.25,0.25,0.25]"], None),
    (["optimizer.lr=3e-3"], None),
    (["optimizer=sgd", "optimizer.lr=3"], None),  # gradients clipped to norm 1
    (["optimizer.lr=1e-6"], None),
    (["optimizer.weight_decay=100"], None),
]


@pytest.mark.parametrize(("overrides", "change"), NOT_CAUGHT, ids=lambda v: str(v)[:40])
def test_documented_limits_are_not_detected(
    overrides: list[str], change: Callable[[CheckContext], None] | None, tmp_path: Path
) -> None:
    subject = subject_of(tmp_path, *TINY, *overrides, change=change or (lambda subject: None))
    assert failures(run_preflight(subject)) == {}


def test_mixing_two_classes_is_a_warning_and_not_a_failure(
    image_root: Path, in_process: Command, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        shutil.rmtree(image_root / split / "cow")
    data = ["data=image_folder", f"data.root={image_root}", "data.batch_size=16", "data.val_size=0"]
    mixed = ["augment.mixing.p=1", "augment.mixing.mixup_alpha=1000", "augment.mixing.cutmix_share=0"]  # half and half
    result = in_process("train.py", *data, *mixed, *TINY, "trainer=cpu", "preflight=only", "hydra.run.dir=run")
    assert result.returncode == 0, result.stdout
    found = {c["check"]: c for c in json.loads((tmp_path / "run" / "preflight.json").read_text())["checks"]}
    assert found["mixing"]["status"] == "warning"
    assert "with two classes, half of the mixed pairs are of one class" in found["mixing"]["meaning"]
    assert "augment.mixing.p=0" in found["mixing"]["meaning"]


def test_frozen_positions_are_a_warning(tmp_path: Path) -> None:
    # Fixed positions are common; preflight cannot know whether these should learn.
    preflight = run_preflight(subject_of(tmp_path, *network("ForgottenRequiresGrad")))
    (finding,) = [f for f in preflight.findings if f.check == "trainable parameters"]
    assert finding.status is Status.WARNING
    assert "frozen: positions" in finding.figure


def test_normalisation_is_compared_with_the_pretrained_weights(tmp_path: Path) -> None:
    timm = ["model=vit_pretrained", "model.pretrained=false", "model.name=test_vit", "data.image_size=64"]
    chosen = ["data.mean=[0.4,0.4,0.4]", "data.std=[0.3,0.3,0.3]"]
    found = [
        {f.check: f for f in run_preflight(subject_of(tmp_path, *timm, *more)).findings}["normalisation"]
        for more in ([], chosen)
    ]
    assert (found[0].status, found[1].status) == (Status.OK, Status.WARNING)
    assert "as the pretrained weights expect" in found[0].figure
    assert "expect mean=[0.5, 0.5, 0.5] std=[0.5, 0.5, 0.5], not [0.4, 0.4, 0.4]" in found[1].meaning


@pytest.mark.parametrize(("rate", "status"), [(5e-3, Status.OK), (1e-9, Status.WARNING), (50.0, Status.FAILED)])
def test_a_safe_copy_is_trained_only_if_the_recipe_does_not_learn(rate: float, status: Status, tmp_path: Path) -> None:
    subject = subject_of(tmp_path, *TINY, f"optimizer.lr={rate}")
    found = {finding.check: finding.status for finding in run_preflight(subject).findings}
    assert (subject.trial is subject.recipe) == (status is Status.OK)
    assert found["overfits one batch"] == found["gradients"] == found["uses positions"] == Status.OK
    assert found["learning rate"] is status


def test_a_recipe_that_can_t_be_tried_does_not_keep_the_model_from_being_checked(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, *TINY)
    subject.classifier.make_optimizer = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    findings = run_preflight(subject).findings
    assert [f.check for f in findings if f.status is Status.SKIPPED] == ["recipe"]
    assert "depends on input" in {f.check for f in findings if f.status is Status.OK}


def test_the_checks_change_neither_the_model_nor_the_random_numbers(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, *TINY, "model.dropout=0.1", "augment=basic")
    network = subject.classifier.network
    before = copy.deepcopy(network.state_dict())
    chance = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    preflight = run_preflight(subject)
    assert failures(preflight) == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert network.training
    assert torch.equal(chance[0], torch.get_rng_state())
    assert np.array_equal(chance[1], np.random.get_state()[1])
    assert chance[2] == random.getstate()


def test_a_run_gives_the_same_weights_with_and_without_preflight(in_process: Command, tmp_path: Path) -> None:
    checkpoints = []
    for mode in ("strict", "off"):
        result = in_process("train.py", *SHORT_RUN, f"preflight={mode}", f"hydra.run.dir={mode}")
        assert result.returncode == 0, result.stderr
        checkpoints.append(read_checkpoint(tmp_path / mode / "checkpoints" / "last.ckpt"))
    checked, unchecked = checkpoints
    assert (tmp_path / "strict" / "preflight.json").exists()
    assert not (tmp_path / "off" / "preflight.json").exists()
    assert all(torch.equal(checked["state_dict"][key], unchecked["state_dict"][key]) for key in unchecked["state_dict"])
    assert_same(checked["optimizer_states"], unchecked["optimizer_states"])


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


NOTEBOOK = [
    *(a for a in SHORT_RUN if not a.startswith(("model.", "preflight="))),
    "model._target_=preflight.networks.NotebookNet",
    "hydra.run.dir=run",
]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])  # the failure does not depend on rounding
def test_the_notebook_s_network_is_refused(precision: str, in_process: Command, tmp_path: Path) -> None:
    result = in_process("train.py", *NOTEBOOK, f"trainer.precision={precision}")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "preflight: gradients, depends on input failed" in result.stderr
    assert "blocks.0.attention (MultiheadAttention) mixes along the batch axis" in result.stdout
    assert "batch_first=True" in result.stdout
    run = tmp_path / "run"
    assert json.loads((run / "manifest.json").read_text())["status"] == "failed"
    assert not (run / "checkpoints").exists()
    checks = json.loads((run / "preflight.json").read_text())
    assert not checks["passed"]
    (seen,) = [check for check in checks["checks"] if check["check"] == "depends on input"]
    assert seen["status"] == "failed"
    assert "along the batch axis" in seen["meaning"]


def test_warn_trains_anyway(in_process: Command, tmp_path: Path) -> None:
    result = in_process("train.py", *NOTEBOOK, "preflight=warn")
    assert result.returncode == 0
    assert "mixes along the batch axis" in result.stdout
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_only_prints_the_table_and_exits(in_process: Command, tmp_path: Path) -> None:
    result = in_process("train.py", *SHORT_RUN, "preflight=only", "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    for line in (
        "depends on input",
        "training images per second: about",
        "M parameters",
        "GB free",
        " checks passed, 1 skipped",
    ):
        assert line in result.stdout
    run = tmp_path / "run"
    assert json.loads((run / "manifest.json").read_text())["status"] == "checked"
    assert json.loads((run / "preflight.json").read_text())["passed"]
    assert not (run / "metrics.json").exists()
    assert in_process("train.py", *NOTEBOOK[:-1], "preflight=only").returncode == 2


def test_tensorboard_shows_the_checks(small_run: Path) -> None:
    events = EventAccumulator(str(small_run))
    events.Reload()
    (text,) = events.Tensors("preflight/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert "| ok | depends on input | logits differ by" in table
    checks = json.loads((small_run / "preflight.json").read_text())
    assert [check["check"] in table for check in checks["checks"]] == [True] * len(checks["checks"])
