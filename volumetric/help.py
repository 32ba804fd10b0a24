"""What --help prints: every option of a program in its section, one line or few, with its default."""

import inspect
import textwrap
from dataclasses import fields

WIDTH = 110  # characters of a line
INDENT = 30  # of what an option is for
KINDS = {int: "N", float: "X", tuple: "LIST", str: "TEXT"}  # what stands behind a flag; a switch has nothing


def help_text(config_class, program, default_of):
    """Text of --help.

    Args:
        config_class: Dataclass of options; see `cli.option`.
        program: How it is called.
        default_of: Function of a field that gives its default, by the recipe that is asked about.
    """
    lines = [*inspect.cleandoc(config_class.__doc__).splitlines(), ""]
    lines += [f"Usage: {program} --flag value ...    (in a flag - and _ are the same)"]
    for number, f in enumerate(fields(config_class)):
        rules = f.metadata["option"]
        if rules.section or not number:
            lines += ["", f"{rules.section or 'Options'}:"]
        lines += lines_of(f, rules, default_of(f))
    return "\n".join([*lines, ""])


def lines_of(field, rules, default):
    """Lines of one option."""
    kind = field.type if isinstance(field.type, type) else field.type.__args__[0]
    flag = f"  --{field.name} {KINDS.get(kind, '')}".rstrip()
    shown = "" if default is None or default is False or default == () else f" [{as_typed(default)}]"
    text = f"{rules.sentence()}{shown}"
    indent = " " * INDENT
    wrapped = textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    if len(flag) + 2 <= INDENT:
        return [flag.ljust(INDENT) + wrapped[0].lstrip(), *wrapped[1:]]
    return [flag, *wrapped]


def as_typed(value):
    """A default as it would be typed."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
