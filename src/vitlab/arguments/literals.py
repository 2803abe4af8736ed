"""Quote paths and names in `key=value` arguments, which Hydra would refuse."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Quote, QuotedString, Sweep
from hydra.errors import OverrideParseException

from vitlab.errors import UserError
from vitlab.files import CONF, expand_home
from vitlab.system import WINDOWS, quote_for_shell

# The last part of the keys that hold a path or a name, of those that do so if Hydra refuses their value, and of those
# that hold a list.
NAMES = re.compile(
    "name|root|dir|subdir|save_dir|cache_dir|run|resume|reproduce|init_from|checkpoint|weights|images|classes|out|outputs"
    "|target|timm_train|project|group|run_name|experiment_name"
)
MAYBE = re.compile(r"\w*(dir|path|file|filename|root|name|url|uri|notes)")
LISTS = ("images", "classes")
SPECIAL = re.compile(r"[\\()\[\]{}:=, \t]")  # in a dict's keys, which Hydra takes without quotes
REFUSED = object()


def quote(text: str, mark: Quote = Quote.single) -> str:
    """Quote any text as a value in Hydra's override grammar."""
    return QuotedString(text, mark).with_quotes()


def literal(argument: str, *, sweep: bool = False) -> str:
    """Quote the value of an argument whose key holds a path, a name or a choice, if Hydra's grammar refuses it.

    A leading `~` is the home folder. The name of an existing file is meant as it is, and what looks like a number or a
    list is the name of something. With `sweep`, commas separate values; in `images=` they always do. A choice of
    null is `none`.
    """
    key, _, text = argument.partition("=")
    if key == "--config-dir":
        return f"{key}={expand_home(text)}" if text else argument
    last = _last(key)
    is_name, is_choice = NAMES.fullmatch(last), (CONF / key.lstrip("+")).is_dir()
    if not text or argument.startswith(("-", "~")) or not (is_name or is_choice or MAYBE.fullmatch(last)):
        return argument
    # On Windows a backslash separates folders: it escapes nothing.
    is_windows_path = WINDOWS and "\\" in text and not {"'", '"'} & set(text)
    value, path = REFUSED if is_windows_path else _value(argument), expand_home(text)
    if is_choice and (value is None or value is False):  # Hydra fails at it
        return f"{key}={'none' if (CONF / key.lstrip('+') / 'none.yaml').exists() else quote(text)}"
    if value is None and text == text.strip():
        return argument
    if is_name and value != text and os.path.exists(path):  # noqa: PTH110  # False for any text
        return f"{key}={_quote(path, last)}"
    if isinstance(value, str):
        return f"{key}={_quote(expand_home(value), last)}" if value.startswith("~") else argument
    if last == "notes" and isinstance(value, Sweep):  # a sentence with a comma
        return f"{key}={quote(text)}"
    if last in LISTS:
        inner = text[1:-1] if text[0] + text[-1] == "[]" else text
        return argument if isinstance(value, list) else f"{key}=[{_quote_each(inner)}]"
    is_other = not (is_name or is_choice or value is REFUSED)  # model.drop_path=0.1
    if is_other or isinstance(value, Sweep | Glob) or (is_choice and isinstance(value, list)):
        return argument
    return f"{key}={_quote_each(text) if sweep else quote(path)}"


def as_arguments(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Python values as `key=value` arguments: nested dicts are dotted keys, and texts mean themselves, without Hydra's
    grammar. Raises UserError for a value that a config can't hold."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from as_arguments(value, f"{key}.")
        else:
            yield f"{key}={_as_text(value, key)}"


def _as_text(value: Any, key: str) -> str:
    if hasattr(value, "tolist"):  # a number or an array of NumPy's or torch's
        return _as_text(value.tolist(), key)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        names = [SPECIAL.sub(r"\\\g<0>", str(name)) for name in value]
        pairs = [f"{name}:{_as_text(each, key)}" for name, each in zip(names, value.values(), strict=True)]
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(_as_text(each, key) for each in value)}]"
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        return text if (CONF / key.lstrip("+")).is_dir() else quote(text)  # a choice
    if isinstance(value, int | float):
        return repr(value)
    raise UserError(f"{key}={value!r} is no number, text, list or dict, which a config can hold")


def describe_several(argument: str) -> str:
    """What to write if several values were given to a key that takes one."""
    key, _, text = argument.partition("=")
    is_one = NAMES.fullmatch(_last(key)) and _last(key) not in LISTS
    return f"{quote_for_shell(f'{key}={quote(text, Quote.double)}')} for one name" if is_one else "key=[a,b] for a list"


def _last(key: str) -> str:
    return re.split(r"[./@]", key.lstrip("+"))[-1]


def _value(argument: str) -> Any:
    try:
        return OverridesParser.create().parse_overrides([argument])[0].value()
    except OverrideParseException:
        return REFUSED


def _quote(path: str, key: str) -> str:
    return f"[{quote(path)}]" if key in LISTS else quote(path)


def _quote_each(text: str) -> str:
    return ",".join(quote(expand_home(part.strip())) for part in text.split(","))
