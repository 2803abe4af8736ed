"""Push an export to the Hugging Face hub, and download one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_session,
    get_token,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from vitlab.errors import UserError, first_line

PREFIX = "hf-hub:"  # as in timm
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"  # of a folder or repository that timm can load
TIMEOUT = 10.0  # seconds until the hub's first answer
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token from https://huggingface.co/settings/tokens"


def check_push(repo: Any) -> None:
    """UserError unless `repo` is a name `<user>/<name>`, and the user has logged in; asks no server."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"push_to_hub={repo} is no name of a repository: {first_line(error)}") from error
    if "/" not in repo:
        raise UserError(f"push_to_hub={repo} must also name you or your organisation: push_to_hub=<user>/{repo}")
    if get_token() is None:
        raise UserError(f"push_to_hub={repo} needs a token with write access: {LOGIN}")


def push(files: Sequence[Path], repo: str, *, private: bool, replaced: Sequence[str], message: str) -> str:
    """Upload files to a model repository `<user>/<name>` in one commit, and return its address and what happened to it.

    The repository is created if it does not exist. In one that exists, files of the names `replaced` that are not
    among the new ones are deleted: they are of an earlier model, and stay in its history.

    Raises:
        UserError: the hub refuses, does not answer, or the repository is public and should be private.
    """
    api = HfApi()
    address = f"{api.endpoint}/{repo}"
    with _sentences(repo):
        try:
            info = api.model_info(repo, timeout=TIMEOUT)
        except RepositoryNotFoundError:
            api.create_repo(repo, private=private)
            earlier, note = set[str](), "created, private" if private else "created, public"
        else:
            if private and not info.private:
                raise UserError(
                    f"private=true: {repo} exists and is public: make it private on {address}/settings, or choose "
                    "another name"
                )
            earlier = {sibling.rfilename for sibling in info.siblings or []}
            note = "existed already: this is a new commit, and its earlier files stay in the history"
        new = {file.name: file for file in files}
        added = [CommitOperationAdd(name, file) for name, file in new.items()]
        deleted = [CommitOperationDelete(name) for name in replaced if name in earlier and name not in new]
        api.create_commit(repo, [*added, *deleted], commit_message=message)
    return f"{address} ({note})"


def download(name: str) -> Path:
    """Download a model of the hub, `hf-hub:<user>/<name>` or `hf-hub:<user>/<name>@<revision>`, as a folder with
    `CONFIG_FILE` and `WEIGHTS_FILE`; UserError if there is none that timm can load."""
    name = name.replace("\\", "/")  # as Windows writes a path
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    with _sentences(repo):
        is_cached = isinstance(try_to_load_from_cache(repo, CONFIG_FILE, revision=revision or None), str)
        try:
            # One request of our own: without a connection the hub's client would try again for half a minute.
            get_session().head(hf_hub_url(repo, CONFIG_FILE), timeout=TIMEOUT)
        except Exception:
            if not is_cached:
                raise
        else:
            is_cached = False  # there may be a newer commit
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            path = Path(hf_hub_download(repo, file, revision=revision or None, local_files_only=is_cached))
            revision = path.parent.name  # both are of one commit
    return path.parent


@contextmanager
def _sentences(repo: str) -> Iterator[None]:
    """Turn errors of the hub and its client into one sentence each."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # from the hub's client, from either HTTP library
        raise UserError(f"{repo}: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _describe(error.__cause__)  # the reason why the client looked for a local file
    if isinstance(error, HFValidationError):
        return f"no name of a repository: {first_line(error)}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE=1 keeps vitlab from asking the hub"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no such repository, or it is private: {LOGIN}"
    if isinstance(error, EntryNotFoundError) and isinstance(error, HfHubHTTPError):
        return f"the repository lacks {CONFIG_FILE} or {WEIGHTS_FILE}: it holds no model of timm's"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return f"the hub does not accept your token: {LOGIN}"
        if status == 403:
            return "your token may not write there: it needs write access, and the name must be yours"
        return f"the hub answers {status} ({error.server_message or first_line(error)})"
    if str(error).startswith("Invalid metadata"):
        return f"the hub refuses the model card: {' '.join(str(error).split())}"
    return f"can't reach the hub ({first_line(error)})"
