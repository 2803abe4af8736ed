"""A config from a file may name only trusted targets."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command
from omegaconf import OmegaConf

from vitlab.config.instantiate import shipped_nodes
from vitlab.errors import UserError
from vitlab.runs.trust import check_trusted, is_trusted, trust


def test_the_targets_of_conf_are_trusted_but_not_those_for_hydra() -> None:
    shipped = {node["_target_"] for _, node in shipped_nodes()}
    assert {"vitlab.optim.cosine_with_warmup", "vitlab.models.timm_model", "torch.optim.AdamW"} <= shipped
    assert not any(target.startswith(("hydra_plugins.", "optuna.", "vitlab.config.")) for target in shipped)


@pytest.mark.parametrize("target", ["torch.optim.RAdam", "torch.nn.Linear", "pytorch_lightning.callbacks.ModelSummary"])
def test_subclasses_of_what_a_config_builds_are_trusted(target: str) -> None:
    assert is_trusted(target)
    assert trust({"a": {"_target_": target}}) == []


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "builtins.exec", "subprocess.run", "torch.hub.load", "torch.load", "vitlab.files.write_text"),
        *(
            "vitlab.runs.run_guard.RunGuard",
            "pathlib.Path",
            "nowhere.Net",
            "torch.nowhere",
            "",
            "conftest.Hub",
        ),
    ],
)
def test_everything_else_must_be_trusted_by_the_user(target: str) -> None:
    config = {"callbacks": [{"deep": {"_target_": target}}]}
    with pytest.raises(UserError, match="the run's config would run"):
        check_trusted(config, [])
    check_trusted(config, [target])


@pytest.mark.parametrize("backslashes", [0, 1, 2, 3])
def test_an_interpolation_in_a_saved_config_is_refused(backslashes: int) -> None:
    text = "\\" * backslashes + "${oc.create:{_target_:builtins.print,_args_:[executed]}}"
    with pytest.raises(UserError, match=r"interpolation at model\.depth"):
        check_trusted({"model": {"_target_": "vitlab.models.VisionTransformer", "depth": text}}, [])


@pytest.mark.parametrize("verb", ["evaluate.py", "resume"])
@pytest.mark.parametrize("attack", ["interpolation", "import"])
def test_a_hostile_run_executes_nothing(
    verb: str, attack: str, in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, canary = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(ROOT / "tests" / "fixtures" / "old_run", run)
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nThing = object\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    config = checkpoint["vitlab_config"]
    if attack == "import":
        config["callbacks"]["thing"] = {"_target_": "evil.thing"}  # no such name: only an import could tell
    else:
        config["model"]["activation"] = f"\\${{oc.create:{{_target_:pathlib.Path.touch,_args_:[{canary}]}}}}"
    torch.save(checkpoint, file)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    command = ["evaluate.py", "run=run"] if verb == "evaluate.py" else ["train.py", "resume=run"]
    result = in_process(*command, "trainer.max_epochs=3")
    assert result.returncode == 2
    assert not canary.exists()
