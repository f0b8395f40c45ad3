"""The command line: YAML and flags to a dataclass, errors to one line. The only module that knows tyro and YAML."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import tyro
import yaml
from tyro.conf import OmitArgPrefixes, Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from sam_blvit.allocator import tune_allocator
from sam_blvit.checkpoint import load_sam, save_plain_sam
from sam_blvit.config import THRESHOLDS, BenchmarkConfig, EverythingConfig, FlopsConfig, ImportConfig, SegmentConfig
from sam_blvit.files import check_inputs_stay

USAGE_ERROR = 2
PLAIN_SUFFIXES = (".pth", ".pt")
Action = Callable[[], object]


def main(args: Sequence[str] | None = None) -> None:
    """`sam-blvit`: run the command that the command line names."""
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
            description="Segment Anything with a big.LITTLE image encoder.",
            args=args,
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


def segment(image: Positional[Path], config: OmitArgPrefixes[SegmentConfig]) -> Action:
    """Mask one object of a photograph: mask, overlay and JSON.

    Args:
        image: The photograph.
    """
    from sam_blvit.segment import segment as action  # pycocotools only where it is used

    def masked() -> None:
        result = action(image, config)
        spent = result["milliseconds"]
        print(
            f"{image}: predicted IoU {result['predicted_iou']:.2f}, {result['area']} pixels, keep ratio "
            f"{result['keep_ratio']:g}, encoder {spent['encoder']:.0f} ms, decoder {spent['decoder']:.0f} ms"
        )
        print(*result["files"].values(), sep="\n")

    return masked


def everything(image: Positional[Path], config: OmitArgPrefixes[EverythingConfig]) -> Action:
    """Mask every object of a photograph: picture and JSON.

    Args:
        image: The photograph.
    """
    from sam_blvit.segment_everything import segment_everything as action

    def masked() -> None:
        result = action(image, config)
        spent = ", ".join(f"{part} {milliseconds:.0f} ms" for part, milliseconds in result["milliseconds"].items())
        print(f"{image}: {len(result['annotations'])} masks, keep ratio {result['keep_ratio']:g}, {spent}")
        print(*result["files"].values(), sep="\n")
        if not result["annotations"]:
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


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(USAGE_ERROR) from None


def _registry() -> ConstructorRegistry:
    """tyro's rules, and one for numbers: 0,1,2 is as good as 0 1 2."""
    registry = ConstructorRegistry()

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


def _first_paragraph(boxed: str) -> str:
    """What tyro says in the first part of its box, as one line."""
    lines = [line.strip("│ ") for line in boxed.splitlines()[1:]]
    end = next((i for i, line in enumerate(lines) if not line or set(line) <= set("─╰╯")), len(lines))
    text = " ".join(lines[:end])
    return re.sub(r"^Error parsing [\w.-]*dummy[\w.-]*: ", "", text) + " (see --help)"


def _flags_of(path: Path, config_type: type, *, but: str | None) -> list[str]:
    """The settings in a YAML file as flags, without the field `but`."""
    if not path.is_file():
        raise ValueError(f"settings {path} is not a file; configs/ has some")
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings of the form name: value")
    known = [field.name for field in fields(config_type)]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{path}: unknown settings {', '.join(unknown)}; there are {', '.join(known)}")
    flags: list[str] = []
    for name, value in settings.items():
        if name == but:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return flags
