"""Suggest words for an unknown key, option or choice."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from glob import escape, glob
from typing import Any

import yaml

from vitlab.errors import did_you_mean, list_some, nearest
from vitlab.files import CONF
from vitlab.system import quote_for_shell

KEY = re.compile(r"[\w.]+")  # an answer that is a key; any other is a sentence


def hint(key: str, siblings: Iterable[Any] = ()) -> str:
    """The end of a sentence about an unknown key: the choices that have it, or the word for it here, or the same name
    elsewhere in the config, or the nearest name of its `siblings`, or of all, or a list of the siblings."""
    words, places = _words(), _places()
    group, dot, _ = key.partition(".")
    last, siblings = key.rpartition(".")[2], {str(name) for name in siblings if not str(name).startswith("_")}
    if options := list(filter(None, places.get(last, {}).get(key, ()))):
        return f": {list_some(options)} {'have' if len(options) > 1 else 'has'} it"
    near = [] if nearest(last, siblings) else get_close_matches(last, {*places, *words}, 1, 0.85)
    for name in (last, *near):
        known = places.get(name, {})
        own = {path: known[path] for path in known if dot and path.startswith(f"{group}.")}
        answer = words.get(key) or (not own and words.get(name))
        if answer:
            return f". Did you mean '{answer}'?" if KEY.fullmatch(answer) else f": {answer}"
        needed = {path: "" if _chosen() & {*o} else " or ".join(o) for path, o in (own or known).items()}
        if needed:
            found = [f"'{path}'" + (f" ({options})" if options else "") for path, options in needed.items()]
            return f". Did you mean {list_some(found)}?"
    return did_you_mean(last, siblings)


def hint_choice(group: str, option: str, options: Sequence[str]) -> str:
    """The end of a sentence about an option that a group does not have."""
    if answer := _words().get(f"{group}={option}"):
        return f": {answer}"
    near = nearest(option, options)
    others = "" if near else _words().get(f"{group}=", "")
    return f"{near} ({group}: {', '.join(options)}{'; ' if others else ''}{others})"


def without_dashes(arguments: Sequence[str], allowed: Collection[str] = (), own: Collection[str] = ()) -> str:
    """A sentence about options like `--lr 0.1` among the arguments, with the line to type; empty if there is none.

    `allowed` are options that exist, `own` the keys of the command itself.
    """
    wrong, right, answers = [], [], []
    for argument, following in zip(arguments, [*arguments, "-"][1:], strict=True):
        option, equals, value = argument.partition("=")
        if not re.match(r"--?[A-Za-z]", option) or option in allowed:
            continue
        is_value = not equals and "=" not in following and not re.match(r"--?[A-Za-z]|-$", following)
        name = option.lstrip("-").replace("-", "_")
        answer = name if name in own else _words().get(name) or next(iter(_places().get(name, {})), "")
        value = value if equals else following if is_value else "true"
        wrong.append(f"{option} {following}" if is_value else argument)
        if KEY.fullmatch(answer):
            right.append(quote_for_shell(f"{answer}={value}"))
        else:
            answers.append(f"{name}: {answer or 'unknown'}")
    sentence = f"{' '.join(wrong)}: write key=value, without dashes"
    return "; ".join([sentence + (f": {' '.join(right)}" if right else ""), *answers]) if wrong else ""


def completions(line: str, own: Iterable[str]) -> list[str]:
    """What the last word of a command line can become: a key of the command or of the config, a choice, or a path."""
    word = "" if line.endswith(" ") else line.split()[-1]
    key, equals, path = word.partition("=")
    choices = [f"{file.parent.name}={file.stem}" for file in CONF.glob("*/*.yaml")]
    names = {*own, *(path for paths in _places().values() for path in paths)}
    files = [f"{key}={file}" for file in glob(f"{escape(path)}*")] if equals else []  # noqa: PTH207
    return sorted(text for text in (*choices, *(f"{name}=" for name in names), *files) if text.startswith(word))


@cache
def _words() -> dict[str, str]:
    """The table of foreign words: word -> key or sentence."""
    table = yaml.safe_load((CONF / "foreign_words.yaml").read_text(encoding="utf-8"))
    return {word: answer for answer, words in table.items() for word in str(words).split()}


@cache
def _chosen() -> set[str]:
    """The choices of a run without any argument: `model=vit_scratch` ..., and "" for what every run has."""
    defaults = yaml.safe_load((CONF / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    return {"", *(f"{group}={option}" for node in defaults if isinstance(node, dict) for group, option in node.items())}


@cache
def _places() -> dict[str, dict[str, list[str]]]:
    """The last name of each key in `conf/` -> the paths that end with it -> the choices that have it, "" for all."""
    found: dict[str, dict[str, list[str]]] = {
        folder.name: {folder.name: [""]} for folder in CONF.iterdir() if folder.is_dir()
    }
    for file in (CONF / "train.yaml", *sorted(CONF.glob("*/*.yaml"))):
        group, text = file.parent.name if file.parent != CONF else "", file.read_text(encoding="utf-8")
        if group in ("experiment", "sweep", "debug"):  # these set keys of the others
            continue
        for path in _paths(yaml.safe_load(text), "" if text.startswith("# @package _global_") else group):
            options = found.setdefault(path.rpartition(".")[2], {}).setdefault(path, [])
            options.append(f"{group}={file.stem}" if group else "")
    return found


def _paths(node: Any, prefix: str) -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        path = f"{prefix}.{key}" if prefix else str(key)
        if not str(key).startswith(("_", "hydra")) and key != "defaults":
            if not str(value).startswith("${"):  # it follows another key
                yield path
            yield from _paths(value, path)
