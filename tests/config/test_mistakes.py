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
        'logger.wandb in conf/logger/wandb.yaml needs the package wandb: pip install -e ".[wandb]"',
        marks=pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed"),
    ),
    (["data.fold=2"], "add data.folds=5"),
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
def test_help_of_the_others_lists_every_key_with_its_meaning(script: str, in_process: Command) -> None:
    result = in_process(script, "--help")
    assert result.returncode == 0
    assert "run: " in result.stdout
    assert "checkpoint: best # best | last | a path" in result.stdout


def test_help_lists_the_choices(in_process: Command) -> None:
    help_text = in_process("train.py", "--help").stdout
    for line in (
        "model: vit_base, vit_hybrid, vit_pretrained, vit_scratch, vit_small, vit_tiny",
        "experiment: cifar10_cpu_30min, cifar10_cpu_30min_bf16, cifar10_cpu_30min_hybrid, cifar10_finetune,",
    ):
        assert line in help_text


@pytest.mark.parametrize("question", ["--help", "--cfg job"])
def test_a_reader_that_has_seen_enough_causes_no_traceback(question: str, tmp_path: Path) -> None:
    line = f"{sys.executable} {ROOT / 'train.py'} {question} | true"
    assert subprocess.run(line, shell=True, capture_output=True, text=True, cwd=tmp_path).stderr == ""


def test_help_with_a_verb_or_a_mistake(in_process: Command) -> None:
    assert in_process("train.py", "resume=latest", "--help").stdout.startswith("# Resume")
    mistyped = in_process("train.py", "model=vit_tny", "--help")
    assert (mistyped.returncode, mistyped.stdout) == (2, "")
    assert "Did you mean 'vit_tiny'?" in mistyped.stderr


@pytest.mark.parametrize("how", ["--config-dir=my conf", "hydra.searchpath=[file://FOLDER]"])
def test_a_folder_of_one_s_own_adds_choices(how: str, in_process: Command, tmp_path: Path) -> None:
    for file, text in (
        ("experiment/größe 1.yaml", "# @package _global_\ndefaults: [override /optimizer: mine]\nname: x\n"),
        ("optimizer/mine.yaml", "_target_: torch.optim.NAdam\n_partial_: true\nlr: 0.002\n"),
    ):
        path = tmp_path / "my conf" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    how = how.replace("FOLDER", str(tmp_path / "my conf"))
    mine = [how, "experiment=größe 1"]
    shown = in_process("train.py", *mine, "--cfg", "job", "-p", "optimizer")
    assert (shown.returncode, "torch.optim.NAdam" in shown.stdout) == (0, True)
    wrong = in_process("train.py", *mine, "optimizer.lrr=1")
    assert (wrong.returncode, "Did you mean 'lr'?" in wrong.stderr) == (2, True)
    sweep = in_process("train.py", "-m", *mine, "optimizer=mine,adamw", "optimizer.lr=x")
    assert (sweep.returncode, sweep.stderr) == (2, "error: optimizer.lr=x must be a number above 0\n")
    misspelt = in_process("train.py", how, "experiment=größe 2")
    assert "Did you mean 'größe 1'?" in misspelt.stderr
    if how.startswith("hydra"):
        small = [*SMALL_RUN, "data=synthetic", "trainer.max_epochs=1", "preflight=off"]
        trained = in_process("train.py", *small, *mine)
        assert trained.returncode == 0, trained.stderr


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["-m", "seed=0,1", "--cfg", "job"], "exclude each other"),
        (["-m", "experiment=glob(notebook_*)", "seed=x"], "seed=x"),
        (["-m", "model=glob(vit_*,exclude=vit_pre*)", "seed=x"], "seed=x"),
        (["-m", "experiment=glob(x*)"], "matches nothing"),
        (["-m", "seed=range(0,0)"], "matches nothing"),
        (["-m", "seed=shuffle(range(0,3))", "optimizer.lr=x"], "optimizer.lr=x"),
        (["-m", "seed=choice(0,x)"], "seed=x"),
        (["-m", "seed=sort(2,1)", "optimizer.lr=x"], "optimizer.lr=x"),
        (["-m", "optimizer.lr=interval(0,1)"], "hydra/sweeper=optuna"),
        (["seed=0", "-m", "optimizer.lr=x,y"], "optimizer.lr=y"),
        (["optimizer.lr=x", "--multirun"], "optimizer.lr=x"),
        (["hydra.mode=MULTIRUN", "seed=0,x"], "seed=x"),
        (["seed=0,1"], "add -m"),
        (["--run", "--info"], "exclude each other"),
        (["hydra/sweeper=optuna", "-m", "optimizer.lr=interval(1e-4,1)", "hydra.sweeper.n_trials=x"], "n_trials=x"),
        (["-m", "experiment=glob(demo)", "data.train_images=400"], "++key=value"),
        (["-cn", "nothing"], "no config file 'nothing'"),
        (["--config-dir=nowhere"], "nowhere' not found"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_hydra_s_syntax_and_flags_end_in_a_sentence(arguments: list[str], answer: str, in_process: Command) -> None:
    result = in_process("train.py", *arguments)
    assert result.returncode == 2
    assert answer in result.stderr
    assert all(line.startswith("error: ") for line in result.stderr.splitlines())


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--cfg", "job", "--resolve"], ["seed=1", "--cfg", "job", "model=vit_tiny", "-p", "model"], ["--info"]),
        *(["--info", "searchpath"], ["--cfg", "hydra", "--package", "hydra.run"], ["-cn", "train", "--cfg", "job"]),
        *(["--cfg", "all", "-p", "optimizer"], ["--info", "defaults-tree"], ["--version"], ["--hydra-help"]),
    ],
    ids=" ".join,
)
def test_hydra_s_flags_that_ask_are_answered(arguments: list[str], in_process: Command) -> None:
    result = in_process("train.py", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


def test_a_sweep_of_one_s_own_main_config_is_checked_by_it(in_process: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    guard = "callbacks:\n  extra:\n    _target_: vitlab.callbacks.NaNGuard\n    action: stop\n"
    (tmp_path / "mine" / "mine.yaml").write_text(f"defaults: [train, _self_]\n{guard}")
    config = ["--config-dir=mine", "--config-name=mine", "-m"]
    result = in_process("train.py", *config, "callbacks.extra.action=stop,jump")
    assert result.returncode == 2
    assert "error: callbacks.extra.action=jump" in result.stderr
    assert "unknown key" not in result.stderr
