"""Options and the command line: one dataclass per program, one line per option.

    @dataclass(kw_only=True)
    class Settings:
        "What the program does."

        steps: int = option(20, "Volumes of an interpolation.", least=2)

        def __post_init__(self):
            check_fields(self)

    def main(argv=None):
        with one_line_errors():
            work(parse_cli(Settings, argv))

Help, type, range and choices of an option are read off its field; no second place names it.
"""

import contextlib
import inspect
import math
import sys
from dataclasses import dataclass, field, fields

import fire


class UserError(ValueError):
    """A mistake of the user's: what was found, what is expected and what to do, in one line.

    Every program prints it without a traceback; any other error is a fault of ours and keeps its own.
    """


@dataclass(frozen=True)
class Option:
    """What a field of a configuration says of itself beside its type and default.

    Args:
        help: Sentence for --help.
        least, most: Smallest and largest value; without `least`, numbers must be greater than 0.
        choices: Words that it knows.
        check: Function of (flag, value) that raises a UserError.
        resumed: A continued run computes something else with another value.
        network: Part of the networks' shape, which a checkpoint decides.
    """

    help: str
    least: float | None = None
    most: float | None = None
    choices: tuple = ()
    check: object = None
    resumed: bool = False
    network: bool = False


def option(default, help, **settings):
    """Dataclass field of one option; the settings are those of `Option`."""
    return field(default=default, metadata={"option": Option(help, **settings)})


def options_of(config_class, **wanted):
    """Names of the fields whose Option has the wanted settings, as in options_of(Settings, network=True)."""
    return [
        f.name
        for f in fields(config_class)
        if all(getattr(f.metadata["option"], name) == value for name, value in wanted.items())
    ]


def describe(config_class):
    """Docstring of a configuration with one line for every option, as fire shows it."""
    lines = [f"    {f.name}: {f.metadata['option'].help}" for f in fields(config_class)]
    return "\n".join([inspect.cleandoc(config_class.__doc__), "", "Args:", *lines])


def check_fields(config):
    """Bring every field of a configuration into its type, or raise a UserError that names the flag."""
    for f in fields(config):
        value, rules = typed_value(f, getattr(config, f.name)), f.metadata["option"]
        setattr(config, f.name, value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            check_range(f.name, value, rules.least, rules.most)
        for word in value if isinstance(value, tuple) else (value,):
            if rules.choices and word is not None and word not in rules.choices:
                raise UserError(f"--{f.name} must be {' or '.join(rules.choices)}, got {word!r}.")
        if rules.check is not None and value is not None:
            rules.check(f"--{f.name}", value)


def typed_value(field, value):
    """Value of a configuration field in the field's type, or a UserError that names the flag."""
    optional = field.default is None
    kind = field.type if isinstance(field.type, type) else field.type.__args__[0]
    if optional and value is None:
        return None
    if kind is tuple:
        value = value.split(",") if isinstance(value, str) else value
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}[kind]
        raise UserError(f"--{field.name} must be {expected}, got {value!r}.")
    return value


def check_range(name, value, least=None, most=None):
    """Raise a UserError for a number outside its range; without `least` it must be greater than 0."""
    if most is not None:
        if not least <= value <= most:
            raise UserError(f"--{name} must be between {least} and {most}, got {value}.")
    elif least is not None:
        if not (value >= least and math.isfinite(value)):
            raise UserError(f"--{name} must be {least} or more, got {value}.")
    elif not (value > 0 and math.isfinite(value)):
        raise UserError(f"--{name} must be greater than 0, got {value}.")


def check_device_name(flag, name):
    """Raise a UserError unless a name is auto, cpu, cuda or cuda:<n>."""
    kind, _, index = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise UserError(f"{flag} must be auto, cpu, cuda or cuda:<n>, got {name!r}.")


def parse_cli(config_class, argv=None):
    """Build `config_class` from flags, and exit on an unknown flag or a wrong value before any work."""
    built = []

    def build(**flags):
        built.append(config_class(**flags))

    build.__doc__ = describe(config_class)
    build.__signature__ = inspect.signature(config_class)
    keep_text = {f.name: str for f in fields(config_class) if f.type in (str, str | None)}
    fire.decorators.SetParseFns(**keep_text)(build)  # else `--name 20240101_1` becomes a number
    with one_line_errors():
        fire.Fire(build, command=argv)
    return built[0]


@contextlib.contextmanager
def one_line_errors(interrupted="Interrupted."):
    """Around a whole program: one line on stderr and a non-zero exit for what is no fault of the program's.

    That is a mistake of the user's (UserError), what the system refuses (OSError), and Ctrl-C.

    Args:
        interrupted: What Ctrl-C says.
    """
    try:
        yield
    except (UserError, OSError) as error:
        reason = str(error) or type(error).__name__
        sys.exit(f"Error: {reason}")
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
