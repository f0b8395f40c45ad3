"""The command line: settings from files and flags, one line for each mistake, help that explains everything."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
import textwrap
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import ClassVar, get_type_hints

import pytest
import torch
from PIL import Image

from sam_blvit.checkpoint.load import base_sha256, save_adapter, save_plain_sam, save_sam
from sam_blvit.cli import main, run
from sam_blvit.commands.flags import joined, list_flags
from sam_blvit.commands.scripts import COMMANDS
from sam_blvit.config import (
    MODELS,
    BenchmarkConfig,
    CacheConfig,
    CalibrationConfig,
    EvaluationConfig,
    FinetuneConfig,
    FlopsConfig,
    ReportConfig,
    SegmentConfig,
    SubsetConfig,
    compose,
    kinds_of,
    parts_of,
)
from sam_blvit.model.build import build_sam

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Settings:
    """Settings of a command."""

    name: str
    """A name."""
    rates: tuple[float, ...] = (1.0,)
    """Rates."""
    loud: bool = False
    """Whether to shout."""

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("name=bad is a bad name; try good")


def failing(args: list[str], capsys: pytest.CaptureFixture[str], call: object = main) -> str:
    """The one line that a command with bad input prints; its exit code is 2."""
    with pytest.raises(SystemExit) as stop:
        call(args)  # type: ignore[operator]
    assert stop.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    return errors[0]


def test_settings_come_from_yaml_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("name: a\nrates: [0.5, 2]\nloud: true\n")
    seen: list[Settings] = []

    def command(config: Settings) -> None:
        seen.append(config)

    run(command, [str(path)])
    run(command, [str(path), "--name", "b", "--rates", "3", "--no-loud"])
    run(command, ["--name", "c"])
    assert seen == [Settings("a", (0.5, 2.0), True), Settings("b", (3.0,), False), Settings("c")]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nmae: a", "unknown settings nmae; there are name, rates, loud"),
        ("- a", "has no settings of the form name: value"),
        ("a: [", "is not YAML"),
        ("name: bad", "name=bad is a bad name; try good"),
        ("rates: [x]\nname: a", "--rates"),
    ],
)
def test_bad_settings_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)

    def command(config: Settings) -> None:
        raise AssertionError

    assert line in failing([str(path)], capsys, lambda args: run(command, args))


def test_an_error_of_the_command_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command(config: Settings) -> None:
        raise ValueError(f"cannot use {config.name}\nat all")

    assert failing(["--name", "x"], capsys, lambda args: run(command, args)) == "error: cannot use x at all"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ([], "segment"),
        (["nosuch"], "nosuch"),
        (["segment", "--output", "x"], "no photograph is given"),
        (["segment", "nosuch.jpg", "--output", "x", "--point", "1,1"], "nosuch.jpg"),
        (["segment", "a.jpg", "--output", "x", "--device", "tpu"], "device='tpu' is not one of auto, cpu, cuda, mps"),
        (["flops", "vit_x"], "no model named 'vit_x'; there are vit_b"),
        (["flops", "--keep-ratio", "1.5"], "keep_ratio=1.5 is not a number in [0, 1]"),
        (["benchmark", "vit_x"], "no model named 'vit_x'; there are vit_b"),
        (["benchmark", "--dtypes", "fp16"], "dtypes: 'fp16' is not one of auto, float32, bfloat16"),
        (["benchmark", "--batches", "1,x"], "--batches"),
        (["convert", "nosuch.safetensors", "out.pth"], "nosuch.safetensors is not a file"),
    ],
)
def test_bad_input_ends_in_one_line(capsys: pytest.CaptureFixture[str], args: list[str], line: str) -> None:
    assert line in failing(args, capsys)


def test_convert_writes_a_plain_sam(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sam = build_sam(MODELS["blvit_tiny"])
    save_sam(sam, tmp_path / "ours.safetensors")
    main(["convert", str(tmp_path / "ours.safetensors"), str(tmp_path / "plain.pth")])
    plain = torch.load(tmp_path / "plain.pth", weights_only=True)
    assert plain.keys() == build_sam(MODELS["vit_tiny"]).state_dict().keys()
    assert "left out" in capsys.readouterr().out


def test_convert_leaves_its_input_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ours.pth"
    save_sam(build_sam(MODELS["blvit_tiny"]), path)
    before = path.read_bytes()
    assert "would replace the input" in failing(["convert", str(path), str(path)], capsys)
    assert "must end in .pth or .pt" in failing(["convert", str(path), str(tmp_path / "x.safetensors")], capsys)
    assert path.read_bytes() == before


def test_convert_takes_an_adapter_with_its_base(tmp_path: Path) -> None:
    sam = build_sam(MODELS["blvit_tiny"])
    save_plain_sam(sam, tmp_path / "base.pth")
    save_adapter(sam, tmp_path / "adapter.safetensors", base_sha256=base_sha256(tmp_path / "base.pth"))
    words = [str(tmp_path / name) for name in ("adapter.safetensors", "plain.pth", "base.pth")]
    main(["convert", *words[:2], "--base", words[2]])
    plain, base = (torch.load(word, weights_only=True) for word in words[1:])
    assert plain.keys() == base.keys()
    assert all(torch.equal(plain[name], value) for name, value in base.items())


def test_segment_does_not_write_over_its_photograph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.json", format="PNG")
    args = ["segment", str(tmp_path / "photo.json"), "--point", "20,15", "--output", str(tmp_path)]
    assert "photo.json would replace the input" in failing(args, capsys)


def test_segment_writes_its_files_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_sam(build_sam(MODELS["blvit_tiny"]), tmp_path / "ours.safetensors")
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "photo.png")
    checkpoint = ["--checkpoint", str(tmp_path / "ours.safetensors")]
    main(["segment", str(tmp_path / "photo.png"), "--point", "20,15", *checkpoint, "--output", str(tmp_path / "out")])
    written = json.loads((tmp_path / "out" / "photo.json").read_text())
    assert written["model"] == "blvit_tiny"
    assert "photo_mask.png" in capsys.readouterr().out


def test_flops_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["flops", "vit_tiny", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["model"] == "vit_tiny"


# lists of numbers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Lists of numbers."""

    seeds: tuple[int, ...] = (0,)
    """Whole numbers."""
    rates: tuple[float, ...] = ()
    """Numbers."""
    words: tuple[str, ...] = ()
    """No numbers."""


def parsed(config_type: type, args: list[str]) -> object:
    """The config that `run` makes of `args`."""
    seen = []

    def command(config: object) -> None:
        seen.append(config)

    command.__annotations__ = {"config": config_type, "return": None}
    run(command, args)
    return seen.pop()


@pytest.mark.parametrize("words", ["0,1,2", "0 1 2", "0,1 2", "0 1,2"])
def test_numbers_have_commas_or_spaces_between(words: str) -> None:
    config = parsed(Numbers, ["--seeds", *words.split(), "--rates", *words.replace("1", "0.5").split()])
    assert config == Numbers(seeds=(0, 1, 2), rates=(0, 0.5, 2))
    assert {type(seed) for seed in config.seeds} == {int}
    assert {type(rate) for rate in config.rates} == {float}


def test_numbers_in_quotes_may_have_commas_and_spaces_between() -> None:
    assert parsed(Numbers, ["--seeds", "0, 1, 2"]) == Numbers(seeds=(0, 1, 2))


def test_numbers_may_be_negative_or_none_at_all() -> None:
    assert parsed(Numbers, ["--rates", "-0.5,1e-3", "--seeds"]) == Numbers(seeds=(), rates=(-0.5, 0.001))


@pytest.mark.parametrize(
    "text", ["seeds: [0, 1, 2]", "seeds: 0,1,2", "seeds: '0, 1, 2'", "seeds:\n- 0\n- 1\n- 2", "seeds: ['0,1', 2]"]
)
def test_numbers_come_from_yaml_in_all_its_ways(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.yaml").write_text(f"{text}\nrates: [0.125]\n")
    assert parsed(Numbers, [str(tmp_path / "settings.yaml")]) == Numbers(seeds=(0, 1, 2), rates=(0.125,))


def test_one_number_is_a_list_too(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("seeds: 3\n")
    for args in ([str(tmp_path / "settings.yaml")], ["--seeds", "3"]):
        assert parsed(Numbers, args) == Numbers(seeds=(3,))


def test_numbers_on_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("seeds: [0, 1, 2]\n")
    assert parsed(Numbers, [str(tmp_path / "settings.yaml"), "--seeds", "7"]) == Numbers(seeds=(7,))


def test_words_keep_their_commas() -> None:
    assert parsed(Numbers, ["--words", "a,b", "c"]) == Numbers(words=("a,b", "c"))


@pytest.mark.parametrize("words", ["0,x", "0.5", "0,1,", "", "1;2", "1e3"])
def test_what_is_no_whole_number_ends_in_one_line(capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert "--seeds" in failing(["--seeds", words], capsys, lambda args: parsed(Numbers, args))


def test_what_is_no_number_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = failing(["--rates", "0.5,half"], capsys, lambda args: parsed(Numbers, args))
    assert "--rates" in line
    assert "'half'" in line


@dataclass(frozen=True, kw_only=True)
class LongNumbers:
    """Lists of numbers with many digits."""

    seeds: tuple[int, ...] = (1234567,)
    """Whole numbers."""
    rates: tuple[float, ...] = (1 / 3,)
    """Numbers."""


def test_numbers_that_are_not_given_are_the_defaults_exactly() -> None:
    assert parsed(LongNumbers, []) == LongNumbers()


# words without a flag ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A command with words before its flags."""

    positional: ClassVar[str] = "runs"
    """The field that words without a flag fill."""
    output: Path
    """Where to."""
    runs: tuple[Path, ...]
    """What."""


@pytest.mark.parametrize("args", [["a", "b", "--output", "o"], ["--runs", "a", "b", "--output", "o"]])
@pytest.mark.parametrize("config_type", [ReportConfig, Joined])
def test_words_before_the_first_flag_fill_the_field_for_them(config_type: type, args: list[str]) -> None:
    assert parsed(config_type, args) == config_type(runs=(Path("a"), Path("b")), output=Path("o"))


@pytest.mark.parametrize("flags", [[], ["--output", "p"]])
def test_words_after_a_file_of_settings_fill_the_field_for_them(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "settings.yaml").write_text("output: o\n")
    config = parsed(ReportConfig, [str(tmp_path / "settings.yaml"), "a", "b", *flags])
    assert config == ReportConfig(runs=(Path("a"), Path("b")), output=Path(flags[1] if flags else "o"))


def test_words_win_over_a_file_of_settings(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("output: o\nruns: [c]\n")
    assert parsed(ReportConfig, [str(tmp_path / "settings.yaml"), "a"]).runs == (Path("a"),)


def test_the_field_for_words_may_come_from_a_file_of_settings(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("output: o\nruns: [a, b]\n")
    assert parsed(ReportConfig, [str(tmp_path / "settings.yaml")]).runs == (Path("a"), Path("b"))


@pytest.mark.parametrize(
    ("args", "named"),
    [([], "--runs"), (["--output", "o"], "--runs"), (["a"], "--output"), (["--output", "o", "a"], "--runs")],
)
def test_a_report_of_nothing_or_to_nowhere_ends_in_one_line(
    capsys: pytest.CaptureFixture[str], args: list[str], named: str
) -> None:
    assert named in failing(args, capsys, lambda args: parsed(ReportConfig, args))


def test_a_command_without_a_field_for_words_refuses_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert "stray" in failing(["stray"], capsys, lambda args: parsed(Numbers, args))


# help and files ------------------------------------------------------------------------------------------------------

SCRIPTS = {
    "tools/finetune.py": FinetuneConfig,
    "tools/cache_teacher.py": CacheConfig,
    "tools/make_subset.py": SubsetConfig,
    "eval/run_lvis.py": EvaluationConfig,
    "eval/run_coco.py": EvaluationConfig,
    "eval/calibrate.py": CalibrationConfig,
    "eval/report.py": ReportConfig,
}


def explanations(config_type: type) -> dict[str, str]:
    """The docstring under each setting of a dataclass and its parts, its own and inherited ones, on one line."""
    found = {}
    alone = kinds_of(config_type).keys() - parts_of(config_type).keys()
    for part in parts_of(config_type).values():
        found |= explanations(part)
    for cls in filter(is_dataclass, reversed(config_type.__mro__)):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and field.target.id in alone:
                found[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return {name: found[name] for name in kinds_of(config_type)}


def help_of(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `script --help` prints, without its frame, on one line; its exit code is 0."""
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert stop.value.code == 0
    return " ".join(re.sub("[─│╭╮╰╯]", " ", capsys.readouterr().out).split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_setting(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = help_of(script, monkeypatch, capsys)
    for name, explanation in explanations(SCRIPTS[script]).items():
        flag = f"--{name.replace('_', '-')}"
        assert re.search(f" {flag}( |, --no-).*?{re.escape(explanation)} \\((default|required)", shown), flag


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_the_command_is_for(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / script).read_text()))
    assert " ".join(docstring.split()) in help_of(script, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("finetune", ["configs/accelerate.yaml", "--data", "d", "--teacher", "t.pth", "--output", "o", "--lr", "1e-3"]),
        ("finetune", ["--data", "d", "--teacher", "t.pth", "--output", "o", "--recipe", "accelerate"]),
        ("finetune", ["--data", "d", "--output", "o", "--keep-ratios", "0.5", "--keep-ratios", "1", "--preset=paper"]),
        ("report", ["runs/a", "runs/b", "--output", "o"]),
    ],
)
def test_a_subcommand_reads_settings_as_its_file_does(
    name: str, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def remember(config: object) -> None:
        seen.append(config)

    (remember.__annotations__["config"],) = (
        kind for key, kind in get_type_hints(COMMANDS[name]).items() if key != "return"
    )
    monkeypatch.setitem(COMMANDS, name, remember)
    monkeypatch.chdir(ROOT)
    main([name, *args])
    run(remember, args)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("script", ["tools/finetune.py", "eval/run_lvis.py"])
def test_command_files_run_from_a_checkout(script: str) -> None:
    done = subprocess.run([sys.executable, ROOT / script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_demo_removes_what_an_earlier_one_made_first() -> None:
    """Photographs of another installation have another path, and `segment` overwrites no other photograph's mask."""
    _, _, recipe = (ROOT / "Makefile").read_text().partition("\ndemo:")
    first, *others = [line.strip() for line in recipe.partition("\n\n")[0].splitlines()[1:]]
    assert first == "rm -rf demo"
    assert any("--output demo" in line for line in others)


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 9 GiB"), RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")]
)
def test_too_little_memory_is_one_line_with_a_remedy(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    def greedy(config: Numbers) -> None:
        raise error

    assert "; process less at once" in failing([], capsys, lambda args: run(greedy, args))


def test_our_own_mistakes_keep_their_traceback() -> None:
    def mistaken(config: Numbers) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        run(mistaken, [])


# lists, paths and files of settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["--words", "a", "b", "--seeds", "1", "2"],
        ["--words", "a", "--words", "b", "--seeds", "1", "--seeds", "2"],
        ["--words=a", "--seeds=1", "--words", "b", "--seeds", "2"],
    ],
)
def test_a_repeated_flag_adds_to_its_list(args: list[str]) -> None:
    assert parsed(Numbers, args) == Numbers(words=("a", "b"), seeds=(1, 2))


FLAT = """
data: photographs
output: runs/one
teacher: sam.pth
prompts: evs
lr: 1.0e-3
keep_ratios: [0.25, 0.5]
flip: true
"""
NESTED = """
data: {data: photographs}
run: {output: runs/one}
teacher: {teacher: sam.pth}
prompts: {prompts: evs, flip: true}
optimizer:
  lr: 1.0e-3
student:
  keep_ratios: [0.25, 0.5]
"""
MIXED = """
data: photographs
output: runs/one
teacher: {teacher: sam.pth}
prompts: evs
optimizer: {lr: 1.0e-3}
keep_ratios: [0.25, 0.5]
flip: true
"""


@pytest.mark.parametrize("text", [FLAT, NESTED, MIXED])
def test_settings_of_a_recipe_stand_side_by_side_or_below_their_part(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    config = parsed(FinetuneConfig, [str(tmp_path / "recipe.yaml")])
    given = {"teacher": Path("sam.pth"), "prompts": "evs", "lr": 1e-3, "keep_ratios": (0.25, 0.5), "flip": True}
    assert config == compose(FinetuneConfig, data=Path("photographs"), output=Path("runs/one"), **given)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optimizer: {rate: 1}", "optimizer: unknown settings rate; there are epochs, schedule_steps"),
        ("optimizer: {data: d}", "optimizer: unknown settings data; there are epochs, schedule_steps"),
        ("optimizer: 3", "optimizer is a group of settings, not a setting; indent its settings below it"),
        ("lr: 1.0\noptimizer: {lr: 1.0}", "lr: set twice, at the top level and in a group; set it once"),
        ("optimizer: {lr: {lr: 1.0}}", "lr: {'lr': 1.0} is a collection, but a single value is expected"),
    ],
)
def test_a_part_of_a_recipe_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    args = [str(tmp_path / "recipe.yaml"), "--data", "d", "--output", "o"]
    assert f"recipe.yaml: {told}" in failing(args, capsys, lambda args: parsed(FinetuneConfig, args))


@pytest.mark.parametrize(
    "flags", [["--preset", "paper"], ["--preset=paper"], ["--preset", "default", "--preset", "paper"]]
)
def test_a_preset_gives_way_to_recipe_and_flags(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("preset: default\nencoder_lr: 0.5\n")
    named = ["--data", "d", "--output", "o", "--keep-ratios", "0.5", "--keep-ratios", "1"]
    config = parsed(FinetuneConfig, [str(tmp_path / "recipe.yaml"), *named, *flags])
    given = {"preset": "paper", "encoder_lr": 0.5, "keep_ratios": (0.5, 1.0)}
    assert config == compose(FinetuneConfig, data=Path("d"), output=Path("o"), **given)
    assert config.machine.batch_size == 1


@pytest.mark.parametrize("flags", [["--preset", "sam"], ["--preset"]])
def test_a_preset_that_there_is_not_ends_in_one_line(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    args = ["--data", "d", "--output", "o", *flags]
    assert "preset" in failing(args, capsys, lambda args: parsed(FinetuneConfig, args))


def test_repeated_flags_replace_the_list_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("seeds: [7, 8]\n")
    assert parsed(Numbers, [str(tmp_path / "settings.yaml"), "--seeds", "1", "--seeds", "2"]) == Numbers(seeds=(1, 2))


def test_every_list_of_every_command_takes_one_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for config_type in (*SCRIPTS.values(), SegmentConfig, BenchmarkConfig, FlopsConfig):
        for flag in list_flags(config_type):
            assert joined([flag, "a", "--x", flag, "b"], {flag}) == [flag, "a", "b", "--x"]
    assert list_flags(SegmentConfig) == {"--point", "--negative"}
    assert {"--seeds", "--keep-ratios", "--perturb"} == list_flags(EvaluationConfig)


def test_points_given_one_by_one_all_count(tmp_path: Path) -> None:
    save_sam(build_sam(MODELS["blvit_tiny"]), tmp_path / "ours.safetensors")
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "photo.png")
    flags = ["--model", str(tmp_path / "ours.safetensors"), "--output", str(tmp_path / "out")]
    points = ["--point", "1,2", "--negative", "7,8", "--point", "3,4", "--point", "5,6"]
    main(["segment", str(tmp_path / "photo.png"), *points, *flags])
    prompt = json.loads((tmp_path / "out" / "photo.json").read_text())["prompt"]
    assert prompt["points"] == [[1, 2], [3, 4], [5, 6], [7, 8]]


@pytest.mark.parametrize(
    "args",
    [
        ["segment", "a.jpg", "--point", "1,1", "--output", ""],
        ["segment", "a.jpg", "--point", "1,1", "--output", "x", "--checkpoint", ""],
        ["segment", "", "--point", "1,1", "--output", "x"],
        ["everything", "a.jpg", "--output="],
        ["benchmark", "--output", ""],
        ["convert", "", "b.pth"],
        ["import", "vit_s", "--encoder", "", "--output", "x"],
    ],
)
def test_an_empty_path_is_refused(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert "the path is empty" in failing(args, capsys)


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """A setting of each kind."""

    flip: bool = False
    """A switch."""
    warm_start: str = "none"
    """A word."""
    lr: float | None = None
    """A number, or none."""
    steps: int = 1
    """A whole number."""
    rates: tuple[float, ...] | None = None
    """Numbers, or none."""
    output: Path = Path("x")
    """A path."""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("flip: 'true'", "flip: 'true' is not true or false"),
        ("warm_start: yes", "warm_start: YAML reads this word as true; put it in quotes"),
        ("lr: [1, 2]", "lr: [1, 2] is a collection"),
        ("lr: {a: 1}", "lr: {'a': 1} is a collection"),
        ("steps: many", "steps: Error parsing --steps"),
        ("steps:", "steps: the value is missing"),
        ("rates: [a]", "rates: Error parsing --rates"),
        ("output: ''", "output: Error parsing --output: the path is empty"),
        ("1: 2", "unknown settings 1"),
    ],
)
def test_a_wrong_setting_names_file_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    assert failing([str(path)], capsys, lambda args: parsed(Kinds, args)).startswith(f"error: {path}: {line}")


@pytest.mark.parametrize(
    ("content", "line"), [("name: ü".encode("latin-1"), "is not UTF-8"), (b"[" * 100_000, "is nested too deeply")]
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, line: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    assert f"{path} {line}" in failing([str(path)], capsys, lambda args: parsed(Kinds, args))


def test_settings_of_each_kind_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("flip: true\nwarm_start: layerwise\nlr:\nsteps: 3\nrates: [0, -1.5]\noutput: a b\n")
    expected = Kinds(flip=True, warm_start="layerwise", steps=3, rates=(0, -1.5), output=Path("a b"))
    assert parsed(Kinds, [str(path)]) == expected


@pytest.mark.parametrize("args", [["segment", "bü.jpg", "--output", "x", "--device", "tpu"], ["segment", "--nosuch"]])
def test_errors_read_the_same_without_unicode(args: list[str]) -> None:
    plain = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = [
        subprocess.run(
            [sys.executable, "-m", "sam_blvit", *args],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
        for environment in ({"PYTHONIOENCODING": "utf-8"}, plain)
    ]
    assert said[0].returncode == said[1].returncode == 2
    assert said[0].stderr == said[1].stderr


@pytest.mark.parametrize("args", [["--help"], ["--tyro-print-completion", "bash"]])
def test_help_and_completion_are_printed_without_unicode(args: list[str]) -> None:
    plain = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "sam_blvit", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=plain)
    assert "segment" in done.stdout
