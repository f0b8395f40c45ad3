import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from sam_blvit.checkpoint import save_sam
from sam_blvit.cli import main, run
from sam_blvit.config import MODELS, FinetuneConfig, LvisConfig
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
        ("- a", "holds no settings of the form name: value"),
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
        (["segment", "--output", "x"], "PATH"),
        (["segment", "nosuch.jpg", "--output", "x", "--point", "1,1"], "nosuch.jpg"),
        (["segment", "a.jpg", "--output", "x", "--device", "tpu"], "device='tpu' is not one of auto, cpu, cuda, mps"),
        (["flops", "vit_x"], "no model named 'vit_x'; there are vit_b"),
        (["flops", "--keep-ratio", "1.5"], "keep_ratio=1.5 is not a number in [0, 1]"),
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


@pytest.mark.parametrize("config_type", [FinetuneConfig, LvisConfig])
def test_help_explains_every_setting(config_type: type, capsys: pytest.CaptureFixture[str]) -> None:
    def command(config: config_type) -> None:  # type: ignore[valid-type]
        raise AssertionError

    command.__annotations__ = {"config": config_type, "return": None}
    with pytest.raises(SystemExit) as stop:
        run(command, ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in config_type.__dataclass_fields__)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_recipe_is_read(path: Path) -> None:
    seen = []

    def command(config: FinetuneConfig) -> None:
        seen.append(config)

    run(command, [str(path), "--data", "data", "--output", "out"])
    assert len(seen) == 1
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 25


@pytest.mark.parametrize("script", ["tools/finetune.py", "eval/run_lvis.py"])
def test_command_files_run_from_a_checkout(script: str) -> None:
    done = subprocess.run([sys.executable, ROOT / script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
