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
import difflib
import functools
import inspect
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from volumetric import __version__
from volumetric.help import help_text

import fire


class UserError(ValueError):
    """A mistake of the user's: what was found, what is expected and what to do, in one line.

    Every program prints it without a traceback; any other error is a fault of ours and keeps its own.
    """


T = TypeVar("T")  # of an option's value
C = TypeVar("C", bound=Any)  # a dataclass of options
R = TypeVar("R", bound="Continued")

UNSET = object()
LARGEST = 2**53  # of numbers; beyond it, whole ones are not exact as floats
NO_MEMORY = ("out of memory", "not enough memory", "allocate memory")  # in an error of PyTorch's
LONGEST = 4096  # characters of a value
LARGEST_EDGE = 1024  # voxels, of a volume that is trained on


@dataclass(frozen=True)
class Option:
    """What a field of a configuration says of itself beside its type and default.

    Args:
        help: Sentence for --help.
        least, most: Smallest and largest value; without `least`, numbers must be greater than 0.
        choices: Words that it knows, or {word: what it means}.
        check: Function of (flag, value) that raises a UserError.
        file: Path of a file that must be there.
        folder: Path of a folder that must be there, or can be made, and can be written to.
        resumed: A continued run computes something else with another value, which is told.
        kept: A continued run keeps it; its checkpoint decides, and another value is refused.
        network: Part of the networks' shape, which a checkpoint decides for any run that starts from it.
        robust: Default under `--recipe robust`, if it is another.
        section: Title above it in --help, where a section begins.
    """

    help: str
    least: float | None = None
    most: float | None = None
    choices: Sequence[str] | Mapping[str, object] = ()
    check: Callable[[str, Any], None] | None = None
    file: bool = False
    folder: bool = False
    resumed: bool = False
    kept: bool = False
    network: bool = False
    robust: object = UNSET
    section: str | None = None

    def sentence(self) -> str:
        """The sentence for --help, with the choices and what a recipe changes."""
        words = self.choices if isinstance(self.choices, dict) else dict.fromkeys(self.choices)
        meanings = [f"{word} ({text})" if isinstance(text, str) else word for word, text in words.items()]
        choices = f" One of: {', '.join(meanings)}." if words else ""
        robust = "" if self.robust is UNSET else f" With --recipe robust: {self.robust}."
        return f"{self.help}{choices}{robust}"


def option(default: T, help: str, **settings: Any) -> T:
    """Dataclass field of one option; the settings are those of `Option`."""
    return field(default=default, metadata={"option": Option(help, **settings)})


def inherited(config_class: type, name: str, default: T, **settings: Any) -> T:
    """Field of an option that a base class has, with another default, and other settings of `Option`."""
    rules = next(f.metadata["option"] for f in fields(config_class) if f.name == name)
    return field(default=default, metadata={"option": replace(rules, **settings)})


def with_recipes(config_class: type[C]) -> type[C]:
    """Class decorator: with `recipe` robust, options that are not given have their robust default."""
    plain = config_class.__init__

    @functools.wraps(plain)
    def init(self: Any, **given: Any) -> None:
        rules = {f.name: f.metadata["option"] for f in fields(config_class)}
        robust = {name: rule.robust for name, rule in rules.items() if rule.robust is not UNSET}
        plain(self, **{**(robust if given.get("recipe") == "robust" else {}), **given})

    config_class.__init__ = init  # type: ignore[method-assign]  # as a decorator of a class does it
    return config_class


def default_of(config: Any, name: str) -> Any:
    """What an option is when it is not given, by the recipe in use."""
    rule = type(config).__dataclass_fields__[name].metadata["option"]
    by_recipe = getattr(config, "recipe", None) == "robust" and rule.robust is not UNSET
    return rule.robust if by_recipe else getattr(type(config), name)


def options_of(config_class: type, **wanted: Any) -> list[str]:
    """Names of the fields whose Option has the wanted settings, as in options_of(Settings, network=True)."""
    return [
        f.name
        for f in fields(config_class)
        if all(getattr(f.metadata["option"], name) == value for name, value in wanted.items())
    ]


def check_fields(config: Any) -> None:
    """Bring every field of a configuration into its type, or raise a UserError that names the flag."""
    for f in fields(config):
        value, rules = typed_value(f, getattr(config, f.name)), f.metadata["option"]
        setattr(config, f.name, value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            check_range(f.name, value, rules.least, rules.most)
        for word in value if isinstance(value, tuple) else (value,):
            if isinstance(word, str):
                check_text(f.name, word)
            if rules.choices and word is not None and word not in tuple(rules.choices):
                raise UserError(f"--{f.name} must be {' or '.join(rules.choices)}, got {word!r}.")
        for asked, check in (
            (rules.file, check_file),
            (rules.folder, check_folder),
            (rules.check, rules.check),
        ):
            if asked and value is not None:
                check(f"--{f.name}", value)


def check_text(name: str, text: str) -> None:
    """Raise a UserError for a text that is empty, or that no file name, table or terminal can take."""
    if not text.strip():
        raise UserError(f"--{name} is empty: give it a value, or leave it out.")
    if not text.isprintable():
        raise UserError(f"--{name} must be one line of printable characters, got {text!a}.")


def typed_value(field: Field[Any], value: object) -> Any:
    """Value of a configuration field in the field's type, or a UserError that names the flag."""
    optional = field.default is None
    annotation: Any = field.type  # a type, or one | None
    kind = annotation if isinstance(annotation, type) else annotation.__args__[0]
    if optional and value is None:
        return None
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)  # from Python, where a path is no text
    if kind is tuple:
        if isinstance(value, str):  # Fire takes [a:1,b:2] for no list
            value = [word.strip() for word in value.removeprefix("[").removesuffix("]").split(",")]
        value = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not is_plain(value):
            raise UserError(f"--{field.name} must be a list of finite numbers or words, got {value!r}.")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < LARGEST else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}[kind]
        raise UserError(f"--{field.name} must be {expected}, got {value!r}.")
    return value


def is_plain(value: object) -> bool:
    """True for a word, a finite number, and tuples and lists of them."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return isinstance(value, str) or abs(value) < LARGEST


def check_range(name: str, value: float, least: float | None = None, most: float | None = None) -> None:
    """Raise a UserError for a number outside its range; without `least` it must be greater than 0."""
    low = value > 0 if least is None else value >= least
    high = value <= (LARGEST if most is None else most)
    if not (low and high):
        expected = "greater than 0" if least is None else f"{least} or more"
        if least is not None and most is not None:
            expected = f"between {least} and {most}"
        elif low:
            expected = f"at most {LARGEST if most is None else most}"
        raise UserError(f"--{name} must be {expected}, got {value}.")


def check_device_name(flag: str, name: str) -> None:
    """Raise a UserError unless a name is auto, cpu, cuda or cuda:<n>."""
    if name not in ("auto", "cpu", "cuda") and not re.fullmatch("cuda:[0-9]{1,3}", name):
        raise UserError(f"{flag} must be auto, cpu, cuda or cuda:<n>, got {name!r}.")


def check_file(flag: str, path: Path | str) -> None:
    """Raise a UserError unless there is a file."""
    if not Path(path).is_file():
        state = "is no file" if Path(path).exists() else "does not exist"
        raise UserError(f"{flag} {path} {state}: correct the path.")


def check_folder(flag: str, path: Path | str) -> None:
    """Raise a UserError unless a folder is there, or can be made, and can be written to."""
    there = next(p for p in (Path(path).absolute(), *Path(path).absolute().parents) if p.exists())
    if not there.is_dir():
        raise UserError(f"{flag} {path} cannot be made: {there} is a file.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path} cannot be written to: {there} is not yours to write in.")


def parse_cli(config_class: type[C], argv: Sequence[object] | None = None) -> C:
    """Build `config_class` from flags, and exit on an unknown flag or a wrong value before any work.

    With --help or --version it prints that, and exits.
    """
    words, built = list(map(str, sys.argv[1:] if argv is None else argv)), []
    if {"--help", "-h", "--version"} & set(words):
        tell_about(config_class, words)
        sys.exit()

    def build(**flags: Any) -> None:
        built.append(config_class(**flags))

    setattr(build, "__signature__", inspect.signature(config_class))  # noqa: B010  a function has no such field
    keep_text = {f.name: str for f in fields(config_class) if f.type in (str, str | None)}
    fire.decorators.SetParseFns(**keep_text)(build)  # else `--name 20240101_1` becomes a number
    with one_line_errors():
        fire.Fire(build, command=joined_words(config_class, words))
    return built[0]


def tell_about(config_class: type, words: Sequence[str]) -> None:
    """Print the version, or the options with their defaults, by the recipe among the words."""
    if "--version" in words:
        print(f"stylegan2-pytorch-3d {__version__}")
        return
    plain = " ".join(words).replace("=", " ").split()
    robust = "--recipe" in plain and "robust" in plain[plain.index("--recipe") :][:2]

    def default_of(field: Field[Any]) -> object:
        rule = field.metadata["option"].robust
        return rule if robust and rule is not UNSET else field.default

    program = os.path.relpath(sys.argv[0])
    called = f"python {program}" if program.endswith(".py") else os.path.basename(program)
    try:
        print(help_text(config_class, called, default_of), flush=True)
    except (
        BrokenPipeError
    ):  # `--help | head` has read enough; nothing is left to be written at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def joined_words(config_class: type, words: Sequence[str]) -> list[str]:
    """Words of a command line as --flag=value, which Fire cannot take apart otherwise.

    Raises:
        UserError: A word is no flag, a flag is unknown, comes twice or lacks its value.
    """
    words = list(words)
    switches = {f.name: f.type is bool for f in fields(config_class)}
    given = {}
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--"):
            raise UserError(f"{word!a} is no flag: every value follows its --flag.")
        if name.startswith("no") and switches.get(name.removeprefix("no"), False) and not equals:
            name, equals, value = name.removeprefix("no"), "=", "False"
        if name not in switches:
            near = difflib.get_close_matches(name, switches, 1)
            hint = f", do you mean --{near[0]}?" if near else ": --help lists all."
            raise UserError(f"There is no flag {flag!a}{hint}")
        if not equals and words and not words[0].startswith("--"):
            value = words.pop(0)
        elif not equals and not switches[name]:
            raise UserError(f"--{name} lacks its value.")
        elif not equals:
            value = "True"
        if name in given:
            raise UserError(f"--{name} is given twice.")
        if len(value) > LONGEST:
            raise UserError(f"--{name} has a value of {len(value)} characters, at most {LONGEST} are read.")
        given[name] = value
    return [f"--{name}={value}" for name, value in given.items()]


@contextlib.contextmanager
def one_line_errors(interrupted: str = "Interrupted.") -> Iterator[None]:
    """Around a whole program: one line on stderr and a non-zero exit for what is no fault of the program's.

    That is a mistake of the user's (UserError), what the system refuses (OSError), too little memory, and
    Ctrl-C.

    Args:
        interrupted: What Ctrl-C says.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without some character shows "?" for it
            stream.reconfigure(errors="replace")
    try:
        yield
    except (UserError, OSError) as error:
        reason = str(error) or type(error).__name__
        sys.exit(f"Error: {reason}")
    except (MemoryError, RuntimeError) as error:  # PyTorch has no other kind for the host's memory
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in NO_MEMORY):
            raise
        sys.exit(f"Error: The memory does not suffice: {' '.join(str(error).split())[:200]}".rstrip(": "))
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ What every training asks                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def check_run_name(flag: str, name: str) -> None:
    """Raise a UserError unless a name can be that of a folder."""
    if name in ("", ".", "..") or {"/", "\\"} & set(name):
        raise UserError(f"{flag} must be the name of a folder, without a path, got {name!r}.")
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        raise UserError(f"{flag} must have at most {LONGEST_NAME} letters, got {len(name)}.")
    if name == PACKED:
        raise UserError(f"{flag} {PACKED} is the folder of --cache disk: give another name.")


def check_runs(flag: str, text: str) -> None:
    """Raise a UserError unless a text a,b,... names two or more different runs."""
    names = split_runs(text)
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"{flag} must be names of different runs, two or more, as in a,b,c, got {text!r}.")
    for name in names:
        check_run_name(flag, name)


def split_runs(text: str) -> list[str]:
    """The names in a text a,b,..., in brackets or not."""
    return [name.strip() for name in text.removeprefix("[").removesuffix("]").split(",")]


def trainable_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape nearest to another that networks can have: powers of two, Z <= X = Y.

    Shapes: (X, Y, Z) -> (X', X', Z'), voxels
    """
    edges = [min(LARGEST_EDGE, 2 ** max(2, round(math.log2(max(n, 1))))) for n in shape]
    size = max(edges[:2])
    return size, size, min(edges[2], size)


def check_networks(image_size: int, image_depth: int) -> None:
    """Raise a UserError unless both sizes are powers of two and 4 <= image_depth <= image_size."""
    for name, value in (("image_size", image_size), ("image_depth", image_depth)):
        if value < 4 or value & (value - 1):
            size = ",".join(map(str, trainable_shape((image_size, image_size, image_depth))))
            raise UserError(
                f"--{name} must be a power of two, at least 4 voxels, got {value}: bring the volumes to such "
                f"a shape with preprocessing/conform.py --size {size}."
            )
    if image_depth > image_size:
        raise UserError(
            f"--image_depth {image_depth} is larger than --image_size {image_size}: "
            f"choose 4 <= image_depth <= image_size."
        )


def check_betas(betas: Sequence[float]) -> None:
    """Raise a UserError unless --adam_betas are two numbers from 0 to below 1."""
    if [type(b) in (int, float) and 0 <= b < 1 for b in betas] != [True, True]:
        raise UserError(f"--adam_betas must be two numbers from 0 to below 1, got {betas}.")


SHARE = {"least": 0, "most": 1}  # range of a probability
WORKERS = {"least": 0, "most": 64}
LONGEST_NAME = 150  # bytes; a file system takes 255, and the program adds to it
PACKED = "packed"
AMP_DTYPES = {"auto": "by device", "float16": "auto on a GPU", "bfloat16": "auto on a CPU that has it"}
CACHES = {
    "ram": "decoded",
    "gpu": "on the GPU",
    "disk": "packed in results_dir, for all runs",
    "none": "decoded in every epoch",
}


@dataclass(kw_only=True)
class Continued:
    """What a configuration of a training says beside its options."""

    derived = frozenset[str]()  # names of the options that were left out and follow from others

    @property
    def batch_divisor(self) -> int:
        """Of a process's part of a batch."""
        return 1

    @property
    def least_batch(self) -> int:
        """Volumes that a step can be of."""
        return 1

    @property
    def largest_layer(self) -> tuple[int, tuple[int, int, int]]:
        """Channels and voxels, that half precision is tried with on a GPU."""
        return 16, (4, 8, 8)

    def derive(self, name: str, value: object) -> None:
        """Give an option the value that follows from others, if it was left out."""
        if getattr(self, name) is None:
            setattr(self, name, value)
            self.derived |= {name}

    @property
    def scheduled(self) -> bool:
        """Something changes in the course of num_train_steps."""
        return False

    def adopting(self: R, settings: dict[str, Any]) -> R:
        """The configuration with other settings; what was left out follows from these anew."""
        return replace(self, **{**dict.fromkeys(self.derived), **settings})


@dataclass(kw_only=True)
class RunConfig(Continued):
    """Options of any training: its folders, how far it goes, on what machine, and its steps."""

    data: str = option(
        "./data",
        "Folder of NIfTI volumes of (image_size, image_size, image_depth) voxels.",
        section="Data and the run",
    )
    split: str | None = option(
        None, "Table of preprocessing/split.py: what is trained on, and what is not.", file=True
    )
    results_dir: str = option(
        "./results", "Folder for previews and logs, in a sub-folder `name`.", folder=True
    )
    models_dir: str = option("./models", "Folder for checkpoints, in a sub-folder `name`.", folder=True)
    name: str = option("default", "Name of the run.", check=check_run_name)
    new: bool = option(False, "Start afresh; an earlier run of this name is moved aside, never deleted.")
    load_from: int = option(-1, "Number n of the checkpoint to go back to; -1: newest.", least=-1)
    init_from: str | None = option(None, "Checkpoint whose weights a new run starts from.", file=True)
    num_train_steps: int = option(100000, "Steps in the whole run, those of earlier commands included.")
    device: str = option(
        "auto", "cpu, cuda or cuda:<n>.", check=check_device_name, resumed=True, section="Machine"
    )
    multi_gpus: bool = option(False, "Train on all GPUs of this machine; the batch is shared out.")
    fp16: bool = option(True, "Mixed precision; --fp16 False computes all in float32.", resumed=True)
    amp_dtype: str = option("auto", "Of mixed precision.", choices=AMP_DTYPES, resumed=True)
    deterministic: bool = option(False, "Bit-exact resuming on a GPU too, slower; a CPU always does it.")
    cache: str = option("ram", "Where the training volumes are kept.", choices=CACHES, resumed=True)
    num_workers: int | None = option(
        None, "Processes that read; None: 0 with a cache, else up to 4.", **WORKERS
    )
    seed: int = option(42, "Seed of everything; also of the first generated volume.", least=0, resumed=True)
    save_every: int = option(3000, "Steps between checkpoints.", resumed=True, section="What is kept")
    keep_checkpoints: int | None = option(None, "Number of newest checkpoints kept; None keeps all.")
    evaluate_every: int = option(3000, "Steps between previews (below step 2500 every 100).")
    log: bool = option(False, "Write TensorBoard files beside metrics.csv; they need no server.")
    dry_run: bool = option(False, "Check everything, print sizes and peak memory, and train nothing.")
    image_size: int = option(
        128,
        "In-plane edge in voxels, a power of two.",
        most=LARGEST_EDGE,
        network=True,
        section="Volumes, steps",
    )
    image_depth: int = option(32, "Axial slices, a power of two, 4 <= depth <= image_size.", network=True)
    batch_size: int = option(8, "Volumes in a micro-batch, of all processes together.", resumed=True)
    gradient_accumulate_every: int = option(1, "Micro-batches in a training step.", resumed=True)
    learning_rate: float = option(1e-4, "Adam's rate.", most=10, resumed=True)
    final_rate: float = option(1.0, "Share of the rates left at the end.", **SHARE, resumed=True)
    adam_betas: tuple = option((0.0, 0.99), "Adam's two betas.", resumed=True)

    def __post_init__(self) -> None:
        if self.log == "aim":
            raise UserError("--log aim is not supported: --log alone writes TensorBoard files.")
        check_fields(self)
        check_networks(self.image_size, self.image_depth)
        check_betas(self.adam_betas)
        if self.new and self.load_from != -1:
            raise UserError("--new starts afresh and --load_from continues: give one of them.")

    @property
    def scheduled(self) -> bool:
        """Something changes in the course of num_train_steps."""
        return self.final_rate < 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (D, H, W) of a volume inside the networks, voxels."""
        return (self.image_depth, self.image_size, self.image_size)

    @property
    def array_shape(self) -> tuple[int, int, int]:
        """Shape (X, Y, Z) of a volume in a file, voxels."""
        return (self.image_size, self.image_size, self.image_depth)

    def network(self) -> dict[str, Any]:
        """{name: value} of the options that make the networks' shape."""
        return {name: getattr(self, name) for name in options_of(type(self), network=True)}

    @property
    def results(self) -> Path:
        """Folder of this run's previews and logs."""
        return Path(self.results_dir) / self.name

    @property
    def packs(self) -> Path:
        """Folder of the volumes packed by `--cache disk`, of all runs."""
        return Path(self.results_dir) / PACKED

    @property
    def models(self) -> Path:
        """Folder of this run's checkpoints."""
        return Path(self.models_dir) / self.name


@dataclass(kw_only=True)
class VolumeConfig(RunConfig):
    """Options of a training on volumes alone: flips, and classes."""

    dataset_aug_prob: float = option(
        0.5, "Probability of a left-right flip.", **SHARE, resumed=True, section="Flips and classes"
    )
    labels: str | None = option(
        None, "Train for classes: `folders` of data, or a CSV of file and label.", resumed=True
    )
    balance_classes: bool = option(False, "Show every class equally often.", resumed=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance_classes and self.labels is None:
            raise UserError("--balance_classes needs classes: give --labels.")


@dataclass(kw_only=True)
class GenerationOptions(RunConfig):
    """Options of a trainer that also generates."""

    checkpoint: str | None = option(
        None,
        "Checkpoint to generate from; None is the run's, by --load_from.",
        file=True,
        section="Generation",
    )
    use_average: bool = option(True, "Generate from averaged networks; False takes the current ones.")
    output: str | None = option(
        None, "Folder of generated volumes; None: results_dir/name/generated/model_<n>.", folder=True
    )
    recreate: str | None = option(
        None, "Sidecar .json of a generated volume, to make it again and compare.", file=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        jobs = ("recreate", "show", "generate", "generate_interpolation", "evaluate_checkpoints")
        given = [name for name in jobs if getattr(self, name, None)]
        if len(given) > 1:
            raise UserError(f"--{given[0]} and --{given[1]} are two commands: give one after the other.")

    def generated_folder(self, checkpoint: Path | str, kind: str = "") -> Path:
        """Folder of the volumes of a checkpoint, a Path; `kind` tells interpolations from others."""
        if self.output is not None:
            output = Path(self.output).resolve()
            for flag in ("data", "labels", "generate"):
                read = getattr(self, flag, None)
                folder = Path(read).resolve() if isinstance(read, str) else None
                if folder is not None and folder.is_dir() and output.is_relative_to(folder):
                    raise UserError(
                        f"--output {self.output} lies in --{flag} {read}: what is generated would be read as "
                        f"that. Give a folder outside of it."
                    )
            return Path(self.output)
        name = Path(checkpoint).stem
        return self.results / "generated" / (f"{name}-{kind}" if kind else name)


@dataclass(kw_only=True)
class SeedOptions(GenerationOptions):
    """Options of a trainer whose volumes are of seeds."""

    generate: bool = option(False, "Generate volumes from the newest checkpoint instead of training.")
    num_generate: int = option(1, "Volumes to generate, with seeds seed, seed + 1, ...", most=10**6)
    label: str | None = option(
        None, "Class of generated volumes, two, a,b, for an interpolation; None draws as in training."
    )


EMBEDDINGS = {"pretrained": "FID, MD, AUC-PRD", "random": "no download, numbers of other names"}
FEWEST_EVALUATED = 6  # volumes in a set: more than the neighbours that precision and recall ask for


@dataclass(kw_only=True)
class EvaluationOptions(RunConfig):
    """Options of a trainer that evaluates what it generates."""

    calculate_fid_every: int | None = option(
        None, "Steps between evaluations (FID, MD, ...); None is never.", section="Evaluation"
    )
    calculate_fid_num_images: int = option(
        1782, "Volumes generated for each.", least=FEWEST_EVALUATED, most=10**6
    )
    clear_fid_cache: bool = option(False, "Compute the features of the real volumes again.")
    evaluate_checkpoints: bool = option(
        False, "Evaluate all checkpoints of the run, or --checkpoint: table, curves."
    )
    runs: str | None = option(
        None, "With it: runs a,b,... of other seeds, the newest checkpoint of each.", check=check_runs
    )
    embedding: str = option("pretrained", "Networks that evaluate.", choices=EMBEDDINGS)
    medicalnet_weights: str | None = option(None, "resnet_10_23dataset.pth; None downloads it.", file=True)
    inception_weights: str | None = option(None, "weights-inception-2015-12-05-6726825d.pth.", file=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.runs and not self.evaluate_checkpoints:
            raise UserError("--runs are runs to evaluate: give --evaluate_checkpoints, too.")
        if self.runs and (getattr(self, "checkpoint", None) is not None or self.load_from != -1):
            raise UserError("--runs takes the newest checkpoint of each: leave --checkpoint and --load_from.")
