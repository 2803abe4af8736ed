"""A config from a file may name only trusted targets."""

import pytest

from vitlab.config.instantiate import check_trusted, is_trusted, shipped_nodes, trust
from vitlab.errors import UserError


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
            "vitlab.config.run_guard.RunGuard",
            "pathlib.Path",
            "nowhere.Net",
            "torch.nowhere",
            "",
            "${x}",
            "conftest.Hub",
        ),
    ],
)
def test_everything_else_must_be_trusted_by_the_user(target: str) -> None:
    config = {"callbacks": [{"deep": {"_target_": target}}]}
    with pytest.raises(UserError, match="the run's config would run"):
        check_trusted(config, [])
    check_trusted(config, [target])
