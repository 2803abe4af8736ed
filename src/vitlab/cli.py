"""The command line: commands, exit statuses, and one sentence for each mistake.

Status 0: finished. 2: the user's input is wrong. 130, 143 and 129: interrupted by Ctrl-C, SIGTERM or SIGHUP (the
terminal was closed). 1: anything else.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from textwrap import fill
from typing import Any, NoReturn

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

import vitlab
from vitlab.arguments.command import read_command, training_arguments
from vitlab.arguments.entry_points import as_typed, pretend_script, uses_console_script
from vitlab.arguments.hints import without_dashes
from vitlab.config.check import FILLING, GROUPS
from vitlab.config.compose import NOT_COMPOSED, compose_training, explain, refuse
from vitlab.distributed.process import check_start, is_requeued, this_process
from vitlab.errors import INTERRUPTED, PeerError, TerminatedError, UserError, did_you_mean, file_error
from vitlab.files import CONF
from vitlab.runs.console import protect_streams
from vitlab.runs.imports import fast_imports
from vitlab.system import SIGKILL, die_with_parent, prepare_environment

HYDRA_FLAGS = (
    *("-h", "--help", "--hydra-help", "--version", "-r", "--resolve", "-p", "--package", "-c", "--cfg", "-x", "--run"),
    *("-m", "--multirun", "-sc", "--shell-completion", "-cp", "--config-path", "-cn", "--config-name"),
    *("-cd", "--config-dir", "--experimental-rerun", "-i", "--info"),
)


# The commands of the console script `vitlab`: the module whose `main` it calls, and the line of `vitlab --help`.
COMMANDS = {
    "train": ("vitlab.cli", "train or fine-tune a model; also resume or repeat a run, or sweep over settings"),
    "evaluate": ("vitlab.evaluate", "test a run: loss, accuracy, and the accuracy of each class"),
    "predict": ("vitlab.predict", "classify images"),
    "explain": ("vitlab.explain", "draw what a ViT attends to in images"),
    "embed": ("vitlab.embed", "write the features of images as NumPy or CSV, and draw them"),
    "app": ("vitlab.app", "try a model in the browser: drop an image, see its classes and attention"),
    "export": ("vitlab.export", "write a run's model for timm, the Hugging Face hub, or ONNX"),
    "leaderboard": ("vitlab.leaderboard.__main__", "rank runs"),
    "augmentations": ("vitlab.augmentations", "draw what augmentations do to images"),
    "bench": ("vitlab.bench", "measure the speed of this machine"),
}


def main() -> NoReturn:
    """The console script: `vitlab <command> key=value ...`."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print("vitlab trains, compares and uses Vision Transformers.\n\nusage: vitlab <command> key=value ...\n")
        print(*(f"  {name:<14} {text}" for name, (_, text) in COMMANDS.items()), sep="\n")
        print("\nvitlab <command> --help lists the keys of a command. Python: help(vitlab.load), help(vitlab.train)")
        sys.exit(0)
    if name == "--version":
        print(f"vitlab {vitlab.__version__}")
        sys.exit(0)
    if name == "-sc":
        print(*COMMANDS) if arguments == ["query=bash"] else print_completion()
        sys.exit(0)
    if name not in COMMANDS:
        hint = f": vitlab train {name}" if "=" in name else did_you_mean(name, COMMANDS)
        refuse([f"unknown command '{name}'{hint}"])
    pretend_script(name, *arguments)
    if line := os.environ.get("COMP_LINE"):  # Hydra expects that of a script
        os.environ["COMP_LINE"] = line.removeprefix("vitlab ")
    if name == "train":
        launch()
    run(import_module(COMMANDS[name][0]).main)


def run(main: Callable[[], Any], *, several: bool = False) -> NoReturn:
    """Call the main function of a command, which may run as `several` processes, and exit with its status."""
    protect_streams()
    prepare_environment()
    if uses_console_script():
        sys.path.append("")  # the user's modules in this folder; `python train.py` finds them beside itself
    os.environ["MPLBACKEND"] = "agg"  # a notebook sets one that works in its own process only
    if sys.argv[1:] == ["-sc", "install=bash"]:  # Hydra's own completes scripts with a Hydra config only
        print_completion()
        sys.exit(0)
    with _statuses():
        check_start(several=several)
        main()
    sys.exit(0)


def print_completion() -> None:
    print((CONF / "completion.bash").read_text(encoding="utf-8"))


def launch() -> NoReturn:
    """As `run`, for `train.py`: trains, resumes, reproduces or sweeps."""
    run(_train, several=True)


def _train() -> None:
    if any(argument.startswith("sweep=resume:") for argument in sys.argv):
        from vitlab.sweeps.sweep import restore_arguments

        sys.argv[1:] = restore_arguments(sys.argv[1:])
    if flags := without_dashes(sys.argv[1:], HYDRA_FLAGS, ("resume", "reproduce", "init_from")):
        raise UserError(flags)
    given = {argument.partition("=")[0] for argument in sys.argv[1:]}
    is_sweep = bool(given & {"-m", "--multirun", "sweep"})
    arguments = sys.argv[1:] = training_arguments(sys.argv[1:], sweep=is_sweep)
    if not given & {"-sc", "--shell-completion"}:  # Hydra takes overrides only after the last flag
        sys.argv[1:] = sorted(arguments, key=lambda argument: "=" in argument and not argument.startswith("-"))
    check_start(several=not is_sweep)
    if this_process().started_by == "Lightning":  # a rank is of no use without rank 0
        die_with_parent(SIGKILL)

    # A command that SLURM or torchrun repeats resumes the run that it began.
    is_new = "resume" not in given and not any(argument.startswith("-") for argument in given)
    if is_requeued() and is_new:
        with fast_imports():
            from vitlab.resume import resume_requeued
        if resume_requeued(arguments):
            return
    for verb in ("resume", "reproduce"):
        if verb in given:
            command, overrides = read_command(verb, arguments)
            with fast_imports():
                from vitlab import resume
            getattr(resume, verb)(command, overrides)
            return

    if given & {"-h", "--help"} and not given & {"--config-name", "--config-dir", "-cn", "-cd"}:
        _print_help([argument for argument in arguments if not argument.startswith("-")])
        return

    # Hydra would print errors in its own way and exit with 1; with this set it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _compose_and_train(arguments, is_sweep)
    except (OSError, ValueError) as error:
        if "can be specified" in str(error):
            raise UserError("-m, --run, --cfg and --info exclude each other: --cfg is for one run") from None
        if reason := file_error(error):
            key = f"hydra.{'sweep' if is_sweep else 'run'}.dir"
            raise UserError(f"{reason}: choose another folder with {key}=...") from error
        raise
    except NOT_COMPOSED as error:
        from vitlab.sweeps.sweep_guard import composition_mistakes

        sentence = explain(error)
        if is_sweep and sentence.startswith("unknown key"):
            sentence += "; ++key=value gives it to all jobs of a sweep"
        refuse(composition_mistakes(sys.argv[1:]) or [sentence])


def _print_help(overrides: list[str]) -> None:
    """Print the commands, the choices of each group, and the config: what Hydra's own help shows a second later."""
    text, config = OmegaConf.load(CONF / "help.yaml"), OmegaConf.to_yaml(compose_training(overrides))
    print(as_typed(text.header), "== Choices, as group=option ==\n", sep="\n")
    for group in (*GROUPS, *FILLING):
        choices = ", ".join(sorted(file.stem for file in (CONF / group).glob("*.yaml")))
        print(fill(f"{group}: {choices}", 110, subsequent_indent="  "))
    print("\n== The config ==\n", config, text.footer, sep="\n")


def _compose_and_train(arguments: list[str], is_sweep: bool) -> None:
    """As `hydra.main`, which composes a config twice: first to see whether `hydra.mode` makes it a sweep."""
    if not is_sweep and not any(argument.startswith(("-", "hydra.mode")) for argument in arguments):
        begun = False

        def begin(config: DictConfig) -> None:
            nonlocal begun
            begun = True
            _train_by_hydra(config)

        try:
            with initialize_config_dir(str(CONF), job_name="train", version_base="1.3"):
                hydra_app: Any = GlobalHydra.instance().hydra
                hydra_app.run(config_name="train", task_function=begin, overrides=arguments)
            return
        except AssertionError:  # a file says hydra.mode: MULTIRUN
            if begun:
                raise
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(_train_by_hydra)()


def _train_by_hydra(config: DictConfig) -> None:
    with _statuses():  # the process ends inside Hydra's job, so that Hydra prints no errors
        with fast_imports():
            from vitlab.experiment import train
        train(config)


@contextmanager
def _statuses() -> Iterator[None]:
    """Turn exceptions that are no bugs into exit statuses; the traceback goes to run.log, if there is a run."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except TerminatedError as error:
        sys.exit(error.status)
    except PeerError:
        sys.exit(1)
    except Exception as error:
        logging.getLogger(__name__).info("traceback:", exc_info=error)
        if isinstance(error, (UserError, *NOT_COMPOSED)):
            refuse([explain(error)])
        refuse([reason] if (reason := file_error(error)) else [])
        raise
