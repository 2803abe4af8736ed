"""What differs between systems, with the other systems' answers put in by hand."""

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vitlab import system
from vitlab.config.compose import compose_training
from vitlab.errors import UserError, file_error
from vitlab.files import make_folder, write_csv, write_text
from vitlab.runs.directory import RunDirectory, rebase_paths
from vitlab.runs.trust import check_links

TEXTS = [
    *("run=outputs\\demo\\latest", "run=C:\\my runs\\a", "a\\", "a b\\", 'say "hi"', '\\"', 'a\\\\"b\\\\', "", "größe"),
    *(
        "seed=0,1,2",
        "trusted_targets=[mine.]",
        "x & del *",
        "100%",
        "a^b",
        "it's",
        "f(x)",
        "a;b",
        "{a: b}",
        "\\\\srv\\x y",
    ),
]


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The names of Windows; `patch.setattr` sets more."""
    monkeypatch.setattr(system, "WINDOWS", True)
    return monkeypatch


def arguments_of(line: str) -> list[str]:
    """A command line as a Windows program takes it apart (Microsoft, "Parsing C command-line arguments")."""
    found, current, quoted, started, slashes = [], "", False, False, 0
    for character in [*line, " "]:
        if character == "\\":
            slashes, started = slashes + 1, True
            continue
        if character == '"':
            current += "\\" * (slashes // 2)
            if slashes % 2:
                current += '"'
            else:
                quoted, started = not quoted, True
        else:
            current += "\\" * slashes
            if character in " \t" and not quoted:
                found += [current] if started else []
                current, started = "", False
            else:
                current, started = current + character, True
        slashes = 0
    return found


def test_a_printed_command_is_taken_apart_by_windows_as_it_was(windows: pytest.MonkeyPatch) -> None:
    line = system.join_command(TEXTS)
    assert arguments_of(line) == TEXTS
    assert system.split_command(line) == TEXTS
    assert "'" not in line.replace("it's", "")  # cmd.exe does not know it as a quote


@pytest.mark.parametrize(
    "text", ["a&b", "a|b", "a>b", "a^b", "a,b", "a;b", "a(b", "[a]", "{a}", "@a", "a%b", "a b", ""]
)
def test_what_cmd_or_powershell_act_on_is_quoted(text: str, windows: pytest.MonkeyPatch) -> None:
    assert system.quote_for_shell(text) == f'"{text}"'


def test_a_plain_command_has_no_quotes(windows: pytest.MonkeyPatch) -> None:
    assert (
        system.join_command(["python", "C:\\code\\train.py", "resume=outputs\\demo\\2026-01-01_10-00-00"]).count('"')
        == 0
    )


def test_a_command_is_split_as_it_was_joined() -> None:
    assert system.split_command(system.join_command(TEXTS)) == TEXTS


# Files


def refusing(times: int, real: Callable[..., None]) -> Callable[..., None]:
    def refuse(*arguments: Any, **options: Any) -> None:
        nonlocal times
        times -= 1
        if times >= 0:
            raise PermissionError(errno.EACCES, "another process uses it")
        real(*arguments, **options)

    return refuse


def test_a_file_that_is_read_is_replaced_as_soon_as_windows_lets_it(
    windows: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    windows.setattr(os, "replace", refusing(3, os.replace))
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_file_that_stays_open_is_an_error_and_stays_whole(windows: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    windows.setattr(os, "replace", refusing(10**6, os.replace))
    windows.setattr(system, "REPLACE_SECONDS", 0.1)
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_linux_does_not_wait_for_what_it_may_not_replace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "replace", refusing(1, os.replace))
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a.txt", "new")


def test_text_files_have_no_carriage_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    write = Path.write_text
    monkeypatch.setattr(
        Path, "write_text", lambda *a, **options: (seen.append(options["newline"]), write(*a, **options))
    )
    write_csv(tmp_path / "a.csv", ["a", "b"], [[1, "±"]])
    assert seen == ["\n"]
    assert (tmp_path / "a.csv").read_bytes() == "a,b\n1,±\n".encode()


@pytest.mark.parametrize("name", ["a:b", "what?", "con", "NUL.txt", "lpt1", "a.", "b ", "a\tb", 'say "x"', "x|y"])
def test_a_name_that_windows_refuses_is_one_sentence(name: str, windows: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert name.strip() in system.name_fault(Path("outputs", name, "x"))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument", str(tmp_path / name))

    windows.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"Windows allows no file or folder .*out=\.\.\."):
        make_folder(tmp_path / name)


@pytest.mark.parametrize("name", ["demo", "größe", "a b", "console", "com", "2026-01-01_10-00-00", ".hidden", "a.b"])
def test_other_names_are_fine(name: str, windows: pytest.MonkeyPatch) -> None:
    assert system.name_fault(Path("..", "outputs", name)) == ""


def test_names_are_not_checked_elsewhere() -> None:
    assert system.name_fault(Path("a:b")) == ""


def test_a_path_that_is_too_long_for_windows_is_said(windows: pytest.MonkeyPatch) -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", f"/x/{'a' * 300}")
    assert "259 characters" in file_error(missing)
    assert file_error(FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/a")) == ""


def test_a_path_on_another_drive_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert system.relative_to(tmp_path / "a", tmp_path / "b") == str(Path("..", "a"))

    def other_drive(*_: Any) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", other_drive)
    assert system.relative_to(tmp_path / "a", tmp_path / "b") == str(tmp_path / "a")


def test_a_junction_that_leads_out_of_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "figures").symlink_to(tmp_path)
    monkeypatch.setattr(Path, "is_symlink", lambda path: False)  # as of a junction
    lstat = Path.lstat

    class Tagged:
        st_reparse_tag = 0xA0000003

    monkeypatch.setattr(Path, "lstat", lambda path: Tagged if path.name == "figures" else lstat(path))
    with pytest.raises(UserError, match="figures is a link"):
        check_links(tmp_path / "run")


@pytest.mark.parametrize(
    ("before", "now", "path", "moved"),
    [
        ("/a/run", "/b/run", "/a/run/mlflow.db", "/b/run/mlflow.db"),
        ("/a/run", "/b/run", "/a/run\\x", "/a/run\\x"),  # another folder of Linux
        ("C:\\a\\run", "/b/run", "C:\\a\\run\\checkpoints\\top.ckpt", "/b/run/checkpoints/top.ckpt"),
        ("C:\\a\\run", "/b/run", "sqlite:///C:\\a\\run/mlflow.db", "sqlite:////b/run/mlflow.db"),
        ("C:\\a\\run", "/b/run", "C:\\a\\run_2\\x", "C:\\a\\run_2\\x"),
        ("C:\\a\\run", "/b/run", "C:\\a\\run", "/b/run"),
    ],
)
def test_a_run_moves_between_systems(before: str, now: str, path: str, moved: str) -> None:
    assert rebase_paths({"x": [path]}, before, now) == {"x": [moved]}


def test_paths_of_a_run_that_moves_to_windows_keep_their_separators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.runs.directory.WINDOWS", True)
    assert rebase_paths("C:\\a\\run\\x.ckpt", "C:\\a\\run", "D:\\run") == "D:\\run\\x.ckpt"
    assert rebase_paths("/a/run/x.ckpt", "/a/run", "D:\\run") == "D:\\run/x.ckpt"


def test_a_place_in_the_file_system_is_recognised_in_any_notation() -> None:
    assert all(map(system.is_path_like, ("/x", "a/b", "..", "a\\b", "C:x", "C:\\x")))
    assert not any(map(system.is_path_like, ("mlflow.db", "00:01:00:00", "{epoch}", "")))


# Signals and processes


def test_signals_that_windows_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {signal.SIGINT, signal.SIGTERM} <= set(system.stop_signals())
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.delattr(signal, "SIGUSR1")
    monkeypatch.setattr(system, "SIGHUP", None)
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGTTIN, raising=False)
    assert system.stop_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGTTIN]


def test_ends_of_processes_are_described() -> None:
    assert system.describe_exit(-9) == "was killed by SIGKILL (out of memory?)"
    assert system.describe_exit(-11) == "was killed by SIGSEGV"
    assert system.describe_exit(1) == "ended with status 1"
    assert system.describe_exit(3221225477) == "ended with status 0xc0000005"


def test_a_process_is_asked_to_stop_by_ctrl_break(windows: pytest.MonkeyPatch) -> None:
    calls = []

    class Process:
        def __init__(self, has_console: bool) -> None:
            self.has_console = has_console

        def send_signal(self, number: int) -> None:
            if not self.has_console:
                raise OSError(errno.EINVAL, "the handle is invalid")
            calls.append(number)

        def terminate(self) -> None:
            calls.append("terminate")

    windows.setattr(system, "BREAK", 1)
    for has_console in (True, False):
        system.ask_to_stop(Process(has_console))  # type: ignore[arg-type]
    assert calls == [1, "terminate"]


def test_a_tree_of_processes_is_killed_while_its_root_runs(windows: pytest.MonkeyPatch) -> None:
    asked = []
    windows.setattr(subprocess, "run", lambda command, **_: asked.append(command))

    class Process:
        pid, status, killed = 77, None, False

        def poll(self) -> int | None:
            return self.status

        def kill(self) -> None:
            self.killed = True

    process = Process()
    system.kill_group(process)  # type: ignore[arg-type]
    assert asked == [["taskkill", "/F", "/T", "/PID", "77"]]
    assert process.killed
    process.status = 0  # its number may be another process's by now
    system.kill_group(process)  # type: ignore[arg-type]
    assert len(asked) == 1


# The machine


def test_facts_of_the_machine() -> None:
    assert system.usable_cores() >= 1
    assert system.cpu_name() == system.cpu_name().strip() != ""
    assert 0.01 < (system.peak_process_memory() or 0) < 1000


@pytest.mark.parametrize("name", ["LINUX", "MAC"])
def test_the_cpu_has_a_name_where_the_usual_place_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "LINUX", name == "LINUX")
    monkeypatch.setattr(system, "MAC", name == "MAC")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor: 0\n")  # as on some ARM machines
    monkeypatch.setattr(subprocess, "run", refusing(10, print))
    assert system.cpu_name() == (system.platform.processor() or system.platform.machine())


def test_torch_s_settings_are_made_before_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PYTORCH_ENABLE_MPS_FALLBACK", "USE_LIBUV"):
        monkeypatch.delenv(variable, raising=False)
    system.prepare_environment()
    assert "USE_LIBUV" not in os.environ
    monkeypatch.setattr(system, "MAC", True)
    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setenv("USE_LIBUV", "1")  # the user's choice stays
    system.prepare_environment()
    assert (os.environ["PYTORCH_ENABLE_MPS_FALLBACK"], os.environ["USE_LIBUV"]) == ("1", "1")


@pytest.mark.parametrize(("compiler", "works"), [("true", True), ("false", False), ("no-such-compiler", False)])
def test_a_compiler_counts_only_if_it_works(compiler: str, works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler)  # on a Mac without command line tools clang++ exists, and fails
    assert system.has_compiler() == works


def test_several_gpus_of_windows_talk_through_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitlab.components import build_node

    config = compose_training(["trainer=ddp", "name=x", "run_dir=x"])
    assert build_node(config.trainer.strategy, "x")._process_group_backend is None
    monkeypatch.setattr("vitlab.distributed.strategies.WINDOWS", True)
    assert build_node(config.trainer.strategy, "x")._process_group_backend == "gloo"
    sharded = compose_training(["trainer=fsdp", "name=x", "run_dir=x"])
    with pytest.raises(UserError, match="sharded_checkpoints"):
        build_node(sharded.trainer.strategy, "x")


def test_a_table_that_excel_keeps_open_does_not_end_a_run(
    windows: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from vitlab.callbacks import MetricsCSV

    trainer: Any = SimpleNamespace(callback_metrics={}, current_epoch=0, global_step=3, is_global_zero=True)
    table = MetricsCSV(tmp_path / "metrics.csv")
    table.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    windows.setattr(system, "REPLACE_SECONDS", 0.1)
    windows.setattr("vitlab.callbacks.metrics_csv.WINDOWS", True)
    with windows.context() as excel:
        excel.setattr(os, "replace", refusing(10**6, os.replace))
        trainer.current_epoch = 1
        table.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert "open in another program" in caplog.text
    assert len(RunDirectory(tmp_path).epoch_rows()) == 1
    trainer.current_epoch = 2
    table.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert [row["epoch"] for row in RunDirectory(tmp_path).epoch_rows()] == [1, 2, 3]
