"""Which settings make runs differ, and what to call them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitlab.config.check import FILLING
from vitlab.leaderboard.results import Result

UNSET = "-"
OF_A_RUN = {"seed", "name", "run_dir"}  # differ between runs of the same experiment


def experiment_of(result: Result) -> str:
    """Equal for runs that differ in nothing but their seed, name and place."""
    return "\n".join(sorted(f"{k}={_form(v)}" for k, v in result.settings.items() if k not in OF_A_RUN))


def varied_settings(results: Sequence[Result]) -> list[str]:
    """The settings and groups in which runs differ, those that were typed first; neither what follows from another one,
    nor the content of a group in which different files were chosen, unless it was typed."""
    typed = [override.lstrip("+").partition("=")[0] for result in results for override in result.overrides]
    groups = [group for group in _union(r.choices for r in results) if _varies([r.choices.get(group) for r in results])]
    groups = [group for group in groups if all(group in r.choices for r in results)]
    keys = [
        key
        for key in _union(r.settings for r in results)
        if key not in {*OF_A_RUN, *groups} and _varies([r.settings.get(key, UNSET) for r in results])
    ]
    keys = [
        key
        for key in keys
        if key in typed
        or not (all(key in r.derived for r in results) or any(_follows(key, group, results) for group in groups))
    ]
    return sorted([*groups, *keys], key=lambda key: typed.index(key) if key in typed else len(typed))


def value_of(result: Result, key: str) -> Any:
    """A setting, or a group's choice; "-" where a run has no such setting, null where it is null."""
    value = result.choices[key] if key in result.choices else result.settings.get(key, UNSET)
    return "null" if value is None else value


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value) if isinstance(value, bool | list) else str(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ends of dotted names that tell them apart: `lr` for `optimizer.lr`, where no other one is `lr`."""
    parts = {key: key.removesuffix("._target_").split(".") for key in keys}
    names = {}
    for key, mine in parts.items():
        others = [other for name, other in parts.items() if name != key]
        length = next((n for n in range(1, len(mine)) if all(o[-n:] != mine[-n:] for o in others)), len(mine))
        name = ".".join(mine[-length:])
        names[key] = key if any(name == ".".join(other) for other in others) else name
    return names


def _follows(key: str, group: str, results: Sequence[Result]) -> bool:
    """Whether the file that was chosen in a group says what the setting is."""
    if group not in FILLING and not key.startswith(f"{group}."):
        return False
    choices = {r.choices[group] for r in results}
    return not any(_varies([r.settings.get(key, UNSET) for r in results if r.choices[group] == c]) for c in choices)


def _varies(values: Sequence[Any]) -> bool:
    return len({_form(value) for value in values}) > 1


def _form(value: Any) -> str:
    """The same for 1 and 1.0, another one for true and "1"."""
    return json.dumps(float(value) if is_number(value) else value, default=str)


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    keys: dict[str, None] = {}
    for mapping in mappings:
        keys |= dict.fromkeys(mapping)
    return list(keys)
