"""The command line: YAML and flags to a dataclass, errors to one line. The only module that knows tyro and YAML.

A command imports PyTorch when it runs: help and mistakes in flags answer within a second.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any, NoReturn

import tyro
import yaml
from tyro.conf import OmitArgPrefixes, Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from sam_blvit import __version__
from sam_blvit.allocator import tune_allocator
from sam_blvit.config import THRESHOLDS, BenchmarkConfig, EverythingConfig, FlopsConfig, ImportConfig, SegmentConfig
from sam_blvit.files import check_inputs_stay

USAGE_ERROR = 2
PLAIN_SUFFIXES = (".pth", ".pt")
Action = Callable[[], object]


def main(args: Sequence[str] | None = None) -> None:
    """`sam-blvit`: run the command that the command line names."""
    given = list(sys.argv[1:] if args is None else args)
    if given == ["--version"]:
        print(f"sam-blvit {__version__}")
        return
    commands: dict[str, Callable[..., Action]] = {
        "segment": segment,
        "everything": everything,
        "flops": flops,
        "benchmark": benchmark,
        "convert": convert,
        "import": import_,
    }

    def parse() -> Action:
        return tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="sam-blvit",
            description="Segment Anything with a big.LITTLE image encoder. --version prints the version.",
            args=_joined(given, _list_flags(FlopsConfig, BenchmarkConfig, SegmentConfig)),
            registry=_registry(),
        )

    _call(parse)


def run(command: Callable[[Any], object], args: Sequence[str] | None = None) -> None:
    """Call `command`, whose only parameter is a config dataclass, with what the command line says.

    A first argument ending in .yaml names a file of settings; flags after it win. Other words before the first flag
    fill the field that the dataclass names as `positional`.
    """
    given = list(sys.argv[1:] if args is None else args)
    (config_type,) = (hint for name, hint in typing.get_type_hints(command).items() if name != "return")
    positional = getattr(config_type, "positional", None)

    def parse() -> Action:
        settings, flags = None, given
        if given and Path(given[0]).suffix in {".yaml", ".yml"}:
            settings, flags = Path(given[0]), given[1:]
        words = list(itertools.takewhile(lambda word: positional and not word.startswith("-"), flags))
        flags = flags[len(words) :] + ([f"--{positional}", *words] if words else [])
        flags = _joined(flags, _list_flags(config_type))
        if settings is not None:
            flags = _flags_of(settings, config_type, but=positional if words else None) + flags
        config = tyro.cli(
            config_type,
            args=flags,
            prog=f"{Path(sys.argv[0]).name} [{'DIR ...' if positional else 'SETTINGS.yaml'}]",
            description=sys.modules["__main__"].__doc__,
            registry=_registry(),
        )
        return functools.partial(command, config)

    _call(parse)


def segment(images: Positional[tuple[Path, ...]], config: OmitArgPrefixes[SegmentConfig]) -> Action:
    """Mask one object of each photograph: mask, overlay and JSON.

    Args:
        images: Photographs, and directories of them; the prompts are the same for each.
    """
    from sam_blvit.segment import segment as action  # PyTorch only where it is used

    def masked() -> None:
        for result in action(images, config):
            spent = result["milliseconds"]
            _show(
                f"{result['photograph']}: predicted IoU {result['predicted_iou']:.2f}, {result['area']} pixels, keep "
                f"ratio {result['keep_ratio']:g}, encoder {spent['encoder']:.0f} ms, decoder {spent['decoder']:.0f} ms",
                *result["files"].values(),
            )

    return masked


def everything(images: Positional[tuple[Path, ...]], config: OmitArgPrefixes[EverythingConfig]) -> Action:
    """Mask every object of each photograph: picture and JSON.

    Args:
        images: Photographs, and directories of them.
    """
    from sam_blvit.segment_everything import segment_everything as action

    def masked() -> None:
        for result in action(images, config):
            spent = ", ".join(f"{part} {milliseconds:.0f} ms" for part, milliseconds in result["milliseconds"].items())
            masks = len(result["annotations"])
            _show(
                f"{result['photograph']}: {masks} masks, keep ratio {result['keep_ratio']:g}, {spent}",
                *result["files"].values(),
            )
            if not masks:
                limits = " and ".join(f"{name}={result['settings'][name]:g}" for name in THRESHOLDS)
                print(f"note: no mask passes {limits}; lower them (to 0: no limit)", file=sys.stderr)

    return masked


def flops(models: Positional[tuple[str, ...]] = (), *, config: OmitArgPrefixes[FlopsConfig]) -> Action:
    """Count multiply-accumulates of models, by part and in both conventions in use.

    Args:
        models: Registry names; every model if none is named.
    """
    from sam_blvit.measure.flops import flops as action

    return lambda: print(action(models, config))


def benchmark(models: Positional[tuple[str, ...]] = (), *, config: OmitArgPrefixes[BenchmarkConfig]) -> Action:
    """Time models side by side: encoder and decoder, first call and warm, and their memory.

    Args:
        models: Registry names, checkpoints of ours, or module:function, which returns a segment_anything Sam; times are
            compared with the first. Default: blvit_b_t, vit_b and segment_anything's own ViT-B.
    """
    from sam_blvit.benchmark.cells import DEFAULT_MODELS
    from sam_blvit.benchmark.command import benchmark as action  # matplotlib only where it is used

    return lambda: print(action(models or DEFAULT_MODELS, config), end="")


def convert(checkpoint: Positional[Path], output: Positional[Path], base: Path | None = None) -> Action:
    """Write a plain SAM .pth from the performance blocks, neck, prompt encoder and decoder of one of our checkpoints.

    Args:
        checkpoint: One of our .safetensors.
        output: The .pth to write.
        base: The SAM that an adapter was trained for, if the checkpoint is an adapter.
    """

    from sam_blvit.checkpoint import load_sam, save_plain_sam

    def action() -> None:
        if output.suffix not in PLAIN_SUFFIXES:
            raise ValueError(f"output {output} is not named {' or '.join(PLAIN_SUFFIXES)}, as a plain SAM is")
        check_inputs_stay([output], [checkpoint, base])
        sam = load_sam(checkpoint, base)
        left_out = save_plain_sam(sam, output)
        print(f"{output}: plain SAM of {sam.config.name}'s size; left out {len(left_out)} big.LITTLE tensors")

    return action


def import_(model: Positional[str], config: OmitArgPrefixes[ImportConfig]) -> Action:
    """Write a checkpoint of ours from a plain ViT (DINOv2, MAE, DeiT) and from an exported SAM decoder.

    Args:
        model: Registry name of the dense model that the weights are for, as in vit_s.
    """
    from sam_blvit.importing.command import import_weights  # onnx only where it is used

    return lambda: print(import_weights(model, config))


def _call(parse: Callable[[], Action]) -> None:
    """Parse, then act; bad input of either kind ends in one line and exit code 2."""
    tune_allocator()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode shows a path all the same
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            _parsed(parse)()
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
    except (ValueError, OSError) as error:
        _fail(str(error))
    except MemoryError as error:
        _fail(f"out of memory ({error}); take less at once")
    except RuntimeError as error:
        if not any(words in str(error) for words in ("out of memory", "can't allocate memory")):
            raise
        _fail(f"{error}; take less at once: fewer prompts, or in training a smaller batch or --checkpoint-layers")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _show(*lines: str) -> None:
    """Print `lines` above a progress bar, if there is one."""
    from tqdm import tqdm

    tqdm.write("\n".join(lines))


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(USAGE_ERROR) from None


def _registry() -> ConstructorRegistry:
    """tyro's rules, and two more: 0,1,2 is as good as 0 1 2, and no path is empty."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def path(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path | None] | None:
        optional = kind.type == Path | None
        if kind.type is not Path and not optional:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="{None}|PATH" if optional else "PATH",
            instance_from_str=lambda words: None if optional and words == ["None"] else _path(words[0]),
            is_instance=lambda value: isinstance(value, Path) or (optional and value is None),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def paths(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[Path, ...]] | None:
        if kind.type_origin is not tuple or typing.get_args(kind.type) != (Path, ...):
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[PATH [PATH ...]]",
            instance_from_str=lambda words: tuple(map(_path, words)),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(part, Path) for part in value),
            str_from_instance=lambda value: list(map(str, value)),
        )

    @registry.primitive_rule
    def numbers(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[float, ...]] | None:
        inner = typing.get_args(kind.type)
        if kind.type_origin is not tuple or inner not in ((int, ...), (float, ...)):
            return None
        number = inner[0]
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar=f"{number.__name__.upper()},...",
            instance_from_str=lambda words: tuple(number(part) for word in words for part in word.split(",")),
            is_instance=lambda value: (
                isinstance(value, tuple) and all(isinstance(part, (int, float)) for part in value)
            ),
            str_from_instance=lambda value: [",".join(f"{part:g}" for part in value)] if value else [],
        )

    return registry


def _parsed(parse: Callable[[], Action]) -> Action:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return parse()
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ValueError(_first_paragraph(errors.getvalue())) from None


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    print(f"{'note' if category is UserWarning else category.__name__}: {message}", file=sys.stderr)


def _path(word: str) -> Path:
    if not word.strip():
        raise ValueError("the path is empty; name a file or a directory, . for this one")
    return Path(word)


def _list_flags(*config_types: type) -> set[str]:
    """The flags of `config_types` that take any number of words."""
    hints = (hint for config_type in config_types for hint in typing.get_type_hints(config_type).items())
    return {_flag(name) for name, kind in hints if _takes_many(kind)}


def _takes_many(kind: object) -> bool:
    """Whether `kind` is a tuple of any length, or may be."""
    return Ellipsis in typing.get_args(kind) or any(_takes_many(option) for option in typing.get_args(kind))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _joined(words: Iterable[str], lists: set[str]) -> list[str]:
    """`words` with those of a repeated flag of `lists` behind its first: --point A --point B is --point A B."""
    groups: list[list[str]] = [[]]  # each flag with its words; the first group has none
    places: dict[str, list[str]] = {}
    for word in words:
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if not word.startswith("--"):
            groups[-1].append(word)
        elif flag in places:
            places[flag] += [value] if equals else []
            groups.append(places[flag])
        else:
            groups.append([flag, value] if equals and flag in lists else [word])
            if flag in lists:
                places[flag] = groups[-1]
    distinct = {id(group): group for group in groups}
    return [word for group in distinct.values() for word in group]


def _first_paragraph(boxed: str) -> str:
    """What tyro says in the first part of its box, as one line. Without Unicode the box has lines of - alone."""
    lines = [line.strip("│ ") for line in boxed.splitlines()[1:]]
    rules = [not line or set(line) <= set("-─╰╯") for line in lines]
    start = rules.index(False)
    end = rules.index(True, start) if True in rules[start:] else len(lines)
    text = " ".join(lines[start:end])
    return re.sub(r"^Error parsing [\w.-]*dummy[\w.-]*: ", "", text) + " (see --help)"


def _flags_of(path: Path, config_type: type, *, but: str | None) -> list[str]:
    """The settings in a YAML file as flags, without the field `but`."""
    settings = _settings_in(path)
    known = [field.name for field in fields(config_type)]
    if unknown := sorted(set(map(str, settings)) - set(known)):
        raise ValueError(f"{path}: unknown settings {', '.join(unknown)}; there are {', '.join(known)}")
    kinds = typing.get_type_hints(config_type)
    flags: list[str] = []
    for name, value in settings.items():
        if name != but:
            try:
                flags += _flags_for(name, value, kinds[name])
            except ValueError as error:
                raise ValueError(f"{path}: {name}: {error}") from error
    return flags


def _settings_in(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ValueError, one line that names the file, for anything else."""
    if not path.is_file():
        raise ValueError(f"settings {path} is not a file; configs/ has some")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply; settings have the form name: value") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings of the form name: value")
    return settings


def _flags_for(name: str, value: object, kind: Any) -> list[str]:
    """One setting of a YAML file as flags, if its value fits the field's type, `kind`; ValueError if it does not."""
    if isinstance(value, bool) != (kind is bool):
        if kind is bool:
            raise ValueError(f"{value!r} is not true or false; write one of them, without quotes")
        raise ValueError(f"YAML reads this word as {str(value).lower()}; put it in quotes")
    if isinstance(value, bool):
        return [_flag(name) if value else _flag(f"no_{name}")]
    many = _takes_many(kind)
    if isinstance(value, dict) or (isinstance(value, list) and not many):
        raise ValueError(f"{value!r} is more than one value, where one is expected")
    if value is None and type(None) not in typing.get_args(kind):
        raise ValueError("there is no value; write one, or leave the line out")
    words = [str(part) for part in value] if isinstance(value, list) else [str(value)]
    flags = [_flag(name), *words] if many else [f"{_flag(name)}={words[0]}"]
    setting = make_dataclass("Setting", [(name, kind)])
    _parsed(lambda: tyro.cli(setting, args=flags, registry=_registry()))
    return flags
