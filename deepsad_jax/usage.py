"""What the commands say of themselves."""

import itertools
import textwrap
from typing import Any, NamedTuple

_TAB = " " * 6


class Command(NamedTuple):
    """One of the commands.

    Attributes:
        usage: its arguments.
        help: what it does.
        takes: how many arguments there must be.
        flags: of absl, what else it takes.
    """

    usage: str
    help: str
    takes: int
    flags: Any


def overview(text: str, commands: dict[str, Command]) -> str:
    """What `--help` says: a text, and a line for each command."""
    lines = [text, "", "commands:"]
    for name, command in commands.items():
        lines.append(f"  {f'deepsad {name} {command.usage}':38s} {command.help}")
    return "\n".join(lines)


def explained(name: str, command: Command) -> str:
    """What `--help` says of one command."""
    lines = [f"deepsad {name} {command.usage}", "", command.help]
    for defined in command.flags.flags_by_module_dict().values():
        lines += ["", "flags:", *itertools.chain(*map(_lines, defined))]
    return "\n".join(lines)


def _lines(flag: Any) -> list[str]:
    short = f"-{flag.short_name}, " if flag.short_name else ""
    head = f"  {short}--{flag.name}"
    if flag.boolean:
        head = f"  --[no]{flag.name}"
    elif flag.value not in (None, [], ""):
        head += f"={flag.value}"
    text = flag.help.split(";     repeat")[0]
    return [head, *textwrap.wrap(text, 88, initial_indent=_TAB, subsequent_indent=_TAB)]
