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
import functools
import inspect
import math
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import fire


class UserError(ValueError):
    """A mistake of the user's: what was found, what is expected and what to do, in one line.

    Every program prints it without a traceback; any other error is a fault of ours and keeps its own.
    """


UNSET = object()


@dataclass(frozen=True)
class Option:
    """What a field of a configuration says of itself beside its type and default.

    Args:
        help: Sentence for --help.
        least, most: Smallest and largest value; without `least`, numbers must be greater than 0.
        choices: Words that it knows, or {word: what it means}.
        check: Function of (flag, value) that raises a UserError.
        resumed: A continued run computes something else with another value.
        network: Part of the networks' shape, which a checkpoint decides.
        robust: Default under `--recipe robust`, if it is another.
    """

    help: str
    least: float | None = None
    most: float | None = None
    choices: tuple = ()
    check: object = None
    resumed: bool = False
    network: bool = False
    robust: object = UNSET

    def described(self):
        """The sentence for --help, with the choices and what a recipe changes."""
        words = self.choices if isinstance(self.choices, dict) else dict.fromkeys(self.choices)
        meanings = [f"{word} ({text})" if isinstance(text, str) else word for word, text in words.items()]
        choices = f" One of: {', '.join(meanings)}." if words else ""
        robust = "" if self.robust is UNSET else f" With --recipe robust: {self.robust}."
        return f"{self.help}{choices}{robust}"


def option(default, help, **settings):
    """Dataclass field of one option; the settings are those of `Option`."""
    return field(default=default, metadata={"option": Option(help, **settings)})


def with_recipes(config_class):
    """Class decorator: with `recipe` robust, options that are not given have their robust default."""
    plain = config_class.__init__

    @functools.wraps(plain)
    def init(self, **given):
        rules = {f.name: f.metadata["option"] for f in fields(config_class)}
        robust = {name: rule.robust for name, rule in rules.items() if rule.robust is not UNSET}
        plain(self, **{**(robust if given.get("recipe") == "robust" else {}), **given})

    config_class.__init__ = init
    return config_class


def options_of(config_class, **wanted):
    """Names of the fields whose Option has the wanted settings, as in options_of(Settings, network=True)."""
    return [
        f.name
        for f in fields(config_class)
        if all(getattr(f.metadata["option"], name) == value for name, value in wanted.items())
    ]


def describe(config_class):
    """Docstring of a configuration with one line for every option, as fire shows it."""
    rules = {f.name: f.metadata["option"] for f in fields(config_class)}
    lines = [f"    {name}: {rule.described()}" for name, rule in rules.items()]
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


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ What every training asks                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def check_run_name(flag, name):
    """Raise a UserError unless a name can be that of a folder."""
    if name in ("", ".", "..") or {"/", "\\"} & set(name):
        raise UserError(f"{flag} must be the name of a folder, without a path, got {name!r}.")


AMP_DTYPES = {"auto": "by device", "float16": "auto on a GPU", "bfloat16": "auto on a CPU"}
CACHES = {"ram": "decoded", "disk": "packed in results_dir, for all runs", "none": "decoded in every epoch"}


@dataclass(kw_only=True)
class RunConfig:
    """Options of any training: its folders, how far it goes, and on what machine."""

    data: str = option("./data", "Folder of NIfTI volumes of (image_size, image_size, image_depth) voxels.")
    results_dir: str = option("./results", "Folder for previews, logs and volumes, in a sub-folder `name`.")
    models_dir: str = option("./models", "Folder for checkpoints, in a sub-folder `name`.")
    name: str = option("default", "Name of the run.", check=check_run_name)
    new: bool = option(False, "Start afresh; an earlier run of this name is moved aside, never deleted.")
    load_from: int = option(-1, "Number n of the checkpoint to go back to; -1: newest.", least=-1)
    init_from: str | None = option(None, "Checkpoint whose weights a new run starts from (fine-tuning).")
    num_train_steps: int = option(100000, "Steps in the whole run, those of earlier sessions included.")
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name)
    multi_gpus: bool = option(False, "Train on all GPUs of this machine; the batch is shared out.")
    fp16: bool = option(True, "Mixed precision; penalties are always computed in float32.", resumed=True)
    amp_dtype: str = option("auto", "Of mixed precision.", choices=AMP_DTYPES, resumed=True)
    cache: str = option("ram", "Where the training volumes are kept.", choices=CACHES)
    num_workers: int | None = option(None, "Reading processes; None: 0 with a cache, else up to 4.", least=0)
    seed: int = option(42, "Seed of everything; also of the first generated volume.", least=0, resumed=True)
    save_every: int = option(3000, "Steps between checkpoints.", resumed=True)
    keep_checkpoints: int | None = option(None, "Number of newest checkpoints kept; None keeps all.")
    evaluate_every: int = option(3000, "Steps between previews (below step 2500 every 100).")
    log: bool = option(False, "Write TensorBoard files beside metrics.csv; they need no server.")
    dry_run: bool = option(False, "Check everything, print sizes and peak memory, and train nothing.")

    def __post_init__(self):
        if self.log == "aim":
            raise UserError("--log aim is not supported: --log alone writes TensorBoard files.")
        check_fields(self)
        if self.new and self.load_from != -1:
            raise UserError("--new starts afresh and --load_from continues: give one of them.")

    @property
    def results(self):
        """Folder of this run's previews and logs."""
        return Path(self.results_dir) / self.name

    @property
    def packs(self):
        """Folder of the volumes packed by `--cache disk`, of all runs."""
        return Path(self.results_dir) / "packed"

    @property
    def models(self):
        """Folder of this run's checkpoints."""
        return Path(self.models_dir) / self.name
