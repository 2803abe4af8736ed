"""What a person gets to read who makes a mistake: one sentence, status 2, no traceback."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT, SMALL_RUN, Command

MISTAKES = [
    (["optimizer.lrr=1"], "unknown key 'optimizer.lrr'. Did you mean 'lr'?"),
    (["modle=vit_scratch"], "unknown key 'modle'. Did you mean 'model'?"),
    (["model=vit_scrach"], "there is no model=vit_scrach. Did you mean 'vit_scratch'?"),
    (["data=image_folder"], "data.root in conf/data/image_folder.yaml must be given: add data.root=..."),
    (["data=image_folder", "data.root=nowhere"], "data.root=nowhere: there is no folder nowhere"),
    ([*SMALL_RUN, "model.patch_size=5"], "image_size=32 is not a multiple of patch_size=5"),
    ([*SMALL_RUN, "model._target_=nowhere.Net"], "model._target_=nowhere.Net can't be imported"),
    ([*SMALL_RUN, "scheduler.schedule.warmup=100000"], "warmup=100000 takes 100000 of the run's"),
    ([*SMALL_RUN, "trainer=gpu"], "trainer"),
    pytest.param(
        [*SMALL_RUN, "logger=wandb"],
        "logger.wandb in conf/logger/wandb.yaml needs the package wandb: pip install -e '.[wandb]'",
        marks=pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed"),
    ),
    (["model.depth=[3"], "'model.depth=[3' is not of the form key=value"),
]


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES, ids=lambda value: str(value)[:40])
def test_training_refuses_in_one_sentence(arguments: list[str], sentence: str, in_process: Command) -> None:
    result = in_process("train.py", *arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    message = result.stderr.strip().splitlines()
    assert len(message) == 1
    assert message[0].startswith("error: ")
    assert sentence in message[0]


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["optimizer.lrr=1"]])
def test_questions_and_typing_errors_are_answered_without_torch(arguments: list[str], tmp_path: Path) -> None:
    # Importing torch takes seconds; whoever asks for help or mistypes shall not wait for it.
    program = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    print('TORCH' if 'torch' in sys.modules else 'LIGHT')\n"
    )
    wrapper = f"import sys; sys.argv = {[str(ROOT / 'train.py'), *arguments]!r}\n{program}"
    result = subprocess.run([sys.executable, "-c", wrapper], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "LIGHT"


@pytest.mark.parametrize("script", ["evaluate.py", "predict.py"])
def test_help_of_the_others_lists_every_key_with_its_meaning(script: str, command: Command) -> None:
    result = command(script, "--help")
    assert result.returncode == 0
    assert "run: " in result.stdout
    assert "checkpoint: best # best | last | a path" in result.stdout


def test_help_lists_the_choices(command: Command) -> None:
    help_text = command("train.py", "--help").stdout
    for line in (
        "model: vit_base, vit_hybrid, vit_pretrained, vit_scratch, vit_small, vit_tiny",
        "experiment: cifar10_cpu_30min, cifar10_finetune, cifar10_gpu_10min, cifar10_hybrid_10min, cifar10_scratch,",
    ):
        assert line in help_text


@pytest.mark.parametrize("question", ["--help", "--cfg job"])
def test_a_reader_that_has_seen_enough_causes_no_traceback(question: str, tmp_path: Path) -> None:
    line = f"{sys.executable} {ROOT / 'train.py'} {question} | true"
    assert subprocess.run(line, shell=True, capture_output=True, text=True, cwd=tmp_path).stderr == ""


def test_help_with_a_verb_or_a_mistake(command: Command) -> None:
    assert command("train.py", "resume=latest", "--help").stdout.startswith("# Resume")
    mistyped = command("train.py", "model=vit_tny", "--help")
    assert (mistyped.returncode, mistyped.stdout) == (2, "")
    assert "Did you mean 'vit_tiny'?" in mistyped.stderr


def test_a_sweep_of_one_s_own_main_config_is_checked_by_it(in_process: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    guard = "callbacks:\n  extra:\n    _target_: vitlab.callbacks.NaNGuard\n    action: stop\n"
    (tmp_path / "mine" / "mine.yaml").write_text(f"defaults: [train, _self_]\n{guard}")
    config = ["--config-dir=mine", "--config-name=mine", "-m"]
    result = in_process("train.py", *config, "callbacks.extra.action=stop,jump")
    assert result.returncode == 2
    assert "error: callbacks.extra.action=jump" in result.stderr
    assert "unknown key" not in result.stderr
