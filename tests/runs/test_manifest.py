import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from vitlab.runs import manifest


def test_an_installed_copy_takes_its_revision_from_pip_and_not_from_a_clone_around_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manifest, "IS_CLONE", False)
    notes: dict[str, str | None] = {}
    monkeypatch.setattr(manifest, "distribution", lambda name: SimpleNamespace(read_text=notes.get))
    assert manifest.describe_origin()["git"] == {"revision": None, "dirty": None}
    notes["direct_url.json"] = json.dumps({"url": "https://x.org/vitlab", "vcs_info": {"commit_id": "0123abc"}})
    assert manifest.describe_origin()["git"] == {"revision": "0123abc", "dirty": False}


def test_the_manifest_names_this_command() -> None:
    origin = manifest.describe_origin()
    assert origin["folder"] == str(Path.cwd())
    assert origin["versions"]["vitlab"]
