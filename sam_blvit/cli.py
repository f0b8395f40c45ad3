"""The command line: YAML and flags become a config dataclass, and errors become one line.

A command imports PyTorch when it runs, so that help and errors in flags appear within a second.
"""

from __future__ import annotations

import functools
import io
import itertools
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from sam_blvit import __version__
from sam_blvit.commands.flags import joined, list_flags, parsed, registry
from sam_blvit.commands.recipe import named_recipe, preset_flags, recipe_flags
from sam_blvit.commands.scripts import COMMANDS
from sam_blvit.config import THRESHOLDS, BenchmarkConfig, EverythingConfig, FlopsConfig, ImportConfig, SegmentConfig
from sam_blvit.system.allocator import tune_allocator
from sam_blvit.system.files import check_inputs_stay

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
        **{name: _subcommand(command) for name, command in COMMANDS.items()},
    }

    def parse() -> Action:
        words = joined(given, list_flags(FlopsConfig, BenchmarkConfig, SegmentConfig))
        if given and (command := COMMANDS.get(given[0])):
            words = [given[0], *_flags(_config_type(command), given[1:])]
        return tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="sam-blvit",
            description="Segment Anything with a big.LITTLE image encoder. --version prints the version.",
            args=words,
            config=(OmitArgPrefixes,),
            registry=registry(),
        )

    _call(parse)


def run(command: Callable[[Any], object], args: Sequence[str] | None = None) -> None:
    """Parse the command line of a file in `tools/`, `eval/` or `studies/`, and call `command` with its config.

    Args:
        command: A function whose only parameter is a config dataclass.
        args: The words of the command line, as `_flags` reads them. Default: those of the process.
    """
    given = list(sys.argv[1:] if args is None else args)
    config_type = _config_type(command)

    def parse() -> Action:
        config: Any = tyro.cli(
            config_type,
            config=(OmitArgPrefixes,),
            args=_flags(config_type, given),
            prog=f"{Path(sys.argv[0]).name} [{'DIR ...' if hasattr(config_type, 'positional') else 'SETTINGS.yaml'}]",
            description=sys.modules["__main__"].__doc__,
            registry=registry(),
        )
        return functools.partial(command, config)

    _call(parse)


def segment(images: Positional[tuple[Path, ...]], config: OmitArgPrefixes[SegmentConfig]) -> Action:
    """Mask one object of each photograph: mask, overlay and JSON.

    Args:
        images: Photographs, and directories of photographs. All get the same prompts.
    """
    from sam_blvit.commands.segment import segment as action  # imports PyTorch

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
        images: Photographs, and directories of photographs.
    """
    from sam_blvit.commands.everything import segment_everything as action

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
    """Count multiply-accumulates of models, by part, in both common conventions.

    Args:
        models: Registry names. Default: every model.
    """
    from sam_blvit.cost.macs import flops as action

    return lambda: print(action(models, config))


def benchmark(models: Positional[tuple[str, ...]] = (), *, config: OmitArgPrefixes[BenchmarkConfig]) -> Action:
    """Time models side by side: encoder and decoder, first call and warm, and their memory.

    Args:
        models: Registry names, checkpoints of this package, or module:function, which returns a segment_anything Sam.
            Times are compared with the first. Default: blvit_b_t, vit_b and segment_anything's ViT-B.
    """
    from sam_blvit.benchmark.cells import DEFAULT_MODELS
    from sam_blvit.benchmark.command import benchmark as action  # imports matplotlib

    return lambda: print(action(models or DEFAULT_MODELS, config), end="")


def convert(checkpoint: Positional[Path], output: Positional[Path], base: Path | None = None) -> Action:
    """Write the SAM inside a checkpoint of this package as a plain SAM .pth, without its big.LITTLE parts.

    Args:
        checkpoint: A .safetensors checkpoint of this package.
        output: The .pth to write.
        base: The SAM that an adapter was trained for, if the checkpoint is an adapter.
    """

    from sam_blvit.checkpoint.load import load_sam, save_plain_sam

    def action() -> None:
        if output.suffix not in PLAIN_SUFFIXES:
            raise ValueError(f"output {output} must end in {' or '.join(PLAIN_SUFFIXES)}, as plain SAM files do")
        check_inputs_stay([output], [checkpoint, base])
        sam = load_sam(checkpoint, base)
        left_out = save_plain_sam(sam, output)
        print(f"{output}: plain SAM of {sam.config.name}'s size; left out {len(left_out)} big.LITTLE tensors")

    return action


def import_(model: Positional[str], config: OmitArgPrefixes[ImportConfig]) -> Action:
    """Write a checkpoint of this package from a plain ViT (DINOv2, MAE, DeiT) and an exported SAM decoder.

    Args:
        model: Registry name of the dense model that receives the weights, such as vit_s.
    """
    from sam_blvit.commands.import_weights import import_weights  # imports onnx

    return lambda: print(import_weights(model, config))


def _config_type(command: Callable[[Any], object]) -> type:
    """The config dataclass that `command` takes."""
    (config_type,) = (hint for name, hint in typing.get_type_hints(command).items() if name != "return")
    return config_type


def _subcommand(command: Callable[[Any], object]) -> Callable[..., Action]:
    """`command` for tyro: a function of the same config and description that returns the action."""

    def parsed_command(config: Any) -> Action:
        return functools.partial(command, config)

    parsed_command.__doc__ = command.__doc__
    parsed_command.__annotations__ = {"config": _config_type(command), "return": Action}
    return parsed_command


def _flags(config_type: type, given: Sequence[str]) -> list[str]:
    """A command line as flags only: those of its recipe and its preset first, so that later flags override them.

    A first word ending in .yaml names a file of settings, and `--recipe NAME` one of the package's. Other words before
    the first flag fill the field that the dataclass names as `positional`.
    """
    recipe, flags = named_recipe(given)
    positional = getattr(config_type, "positional", None)
    words = list(itertools.takewhile(lambda word: positional and not word.startswith("-"), flags))
    flags = flags[len(words) :] + ([f"--{positional}", *words] if words else [])
    flags = joined(flags, list_flags(config_type))
    if recipe is not None:
        flags = recipe_flags(recipe, config_type, but=positional if words else None) + flags
    return preset_flags(config_type, flags) + flags


def _call(parse: Callable[[], Action]) -> None:
    """Parse the command line and run the command. Bad input of either kind exits with one line and code 2."""
    tune_allocator()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # so that a terminal without Unicode still shows any path
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            parsed(parse)()
    except BrokenPipeError:  # the reader of the output has closed it
        sys.stderr.close()
    except (ValueError, OSError) as error:
        _fail(str(error))
    except MemoryError as error:
        _fail(f"out of memory ({error}); process less at once")
    except RuntimeError as error:
        if not any(words in str(error) for words in ("out of memory", "can't allocate memory")):
            raise
        _fail(f"{error}; process less at once: fewer prompts, or in training a smaller batch or --checkpoint-layers")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _show(*lines: str) -> None:
    """Print `lines`, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write("\n".join(lines))


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(USAGE_ERROR) from None


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    print(f"{'note' if category is UserWarning else category.__name__}: {message}", file=sys.stderr)
