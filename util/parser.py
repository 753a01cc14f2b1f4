"""How flags are declared, documented by --help, converted and refused; based on argparse."""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from util.errors import UserError

Check = Callable[[argparse.Namespace], None]


@dataclass(frozen=True)
class Flag:
    """A flag, as a row of a table.

    name: "--ngf"; a second spelling follows after a space. default: False makes a switch, [] a
    flag that may be repeated. help: what it does; --help adds the range and the default. values:
    a list of choices, a function that converts the text (see integer), or the text's placeholder.
    """

    name: str
    default: object
    help: str
    values: list | Callable[[str], object] | str | None = None

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        names, settings = self.name.split(), {"default": self.default, "help": self.help}
        if self.default is False:
            settings["action"] = "store_true"
        elif self.default == []:
            settings["action"] = "append"
        if isinstance(self.values, list):
            settings |= {"choices": self.values, "type": type(self.values[0])}
        elif isinstance(self.values, str):
            settings["metavar"] = self.values
        elif self.values:
            settings |= {"type": self.values, "metavar": getattr(self.values, "metavar", None)}
        group.add_argument(*names, **settings)

    def accepts(self, value: object) -> bool:
        """Whether this is a value that the flag can have, as stored in JSON."""
        if self.default is False:
            return isinstance(value, bool)
        if value is None or (value == self.default and type(value) is type(self.default)):
            return value == self.default
        if isinstance(self.values, list):
            return value in self.values
        if not callable(self.values):
            return isinstance(value, str)
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            return self.values(text) == value
        except argparse.ArgumentTypeError:
            return False


class Group:
    """Flags that belong together, and checks of their combinations: functions with @GROUP.check.

    inherited: test.py, encode_features.py and edit.py take these flags from the run's opt.json
    unless they are given.
    """

    def __init__(self, title: str, *flags: Flag, inherited: bool = False) -> None:
        self.title, self.flags, self.inherited = title, flags, inherited
        self.checks: list[Check] = []

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        note = "for a trained run, the defaults are the values in its opt.json"
        group = parser.add_argument_group(self.title, note if self.inherited else None)
        for flag in self.flags:
            flag.add_to(group)

    def check(self, function: Check) -> Check:
        """Decorates a function that raises UserError for parsed flags that do not go together."""
        self.checks.append(function)
        return function


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, whose errors are UserErrors that suggest the
    nearest flag, and whose --help shows ranges and defaults."""

    def __init__(self, **settings: object) -> None:
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **settings)
        if module := sys.modules["__main__"].__spec__:  # as argparse does from Python 3.14 on
            self.prog = f"python -m {module.name}"
        # a range like -1000,3000 is a value as well, not a flag
        self._negative_number_matcher = re.compile(r"-\.?\d[\d.,e+-]*$")

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        close = difflib.get_close_matches(unknown[1], known, 1) if unknown else []
        hint = f"did you mean {close[0]}?" if close else f"{self.prog} --help lists the flags"
        raise UserError(f"{message.removeprefix('argument ')}; {hint}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Adds the range of numbers, and the default, to a flag's help."""

    def _format_action(self, action: argparse.Action) -> str:
        action.help = action.help or " "  # argparse adds nothing to empty text
        return super()._format_action(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        facts = [str(action.type)] if isinstance(action.type, Number) else []
        if action.nargs != 0 and action.default not in (None, "", [], argparse.SUPPRESS):
            facts.append(f"default: {action.default}")
        text = str(action.help).strip()
        return f"{text} ({'; '.join(facts)})".strip() if facts else text


# -- What flags take: argparse types ----------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """An argparse type: a number in [low, high], or one of a few words, which stand for values."""

    kind: type
    low: float
    high: float = math.inf
    words: tuple[tuple[str, object], ...] = ()

    def __call__(self, text: str) -> object:
        words = dict(self.words)
        if text in words:
            return words[text]
        with suppress(ValueError):
            if self.low <= (value := self.kind(text)) <= self.high:
                return value
        kind = "an integer" if self.kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r}: expected {kind}, {self}")

    def __str__(self) -> str:
        limits = f"{self.low} to {self.high}" if self.high < math.inf else f"at least {self.low}"
        return " or ".join([limits, *(word for word, _ in self.words)])

    @property
    def metavar(self) -> str:
        return "N" if self.kind is int else "X"


integer = partial(Number, int)  # integer(low, high)
number = partial(Number, float)  # number(low, high)
count_or_inf = Number(int, 1, words=(("inf", None), ("Infinity", None)))
label_count = Number(int, 0, 65536, words=(("auto", "auto"),))


def value_range(text: str) -> str | list[float]:
    """An argparse type: LOW,HIGH, or one of the words "type" and "auto"."""
    if text in ("type", "auto"):
        return text
    with suppress(ValueError):
        ends = [float(part) for part in text.split(",")]
        if is_range(ends):
            return ends
    raise argparse.ArgumentTypeError(f"{text!r}: expected LOW,HIGH, type or auto")


value_range.metavar = "LOW,HIGH"


def is_range(value: object) -> bool:
    """Whether this is a range as in opt.json: two numbers or a word ("auto" where unused)."""
    if isinstance(value, str):
        return value in ("type", "auto")
    numbers = isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value)
    return numbers and len(value) == 2 and 1e-37 < value[1] - value[0] < 1e38  # as float32


def size(text: str) -> tuple[int, int]:
    """An argparse type: WIDTHxHEIGHT."""
    if not (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected WIDTHxHEIGHT, for example 256x128")
    return int(match[1]), int(match[2])


size.metavar = "WIDTHxHEIGHT"


def subset_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """An argparse type: some of these names, separated by commas."""

    def convert(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(","))) if text else []
        if wrong := [name for name in names if name not in choices]:
            listed = ", ".join(choices)
            raise argparse.ArgumentTypeError(
                f"{wrong[0]!r}: expected some of {listed}, separated by commas"
            )
        return names

    convert.metavar = "NAMES"
    return convert


def safe_names(text: str) -> str:
    """An argparse type: names as safe_name takes them, separated by commas."""
    return ",".join(map(safe_name, text.split(",")))


def safe_name(text: str) -> str:
    """An argparse type: a name that does not lead out of its folder."""
    path = Path(text)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in text:
        problem = f"{text!r}: expected a name without '..' or a leading '/'"
        raise argparse.ArgumentTypeError(problem)
    return text
