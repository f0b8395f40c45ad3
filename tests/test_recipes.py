"""Every recipe in configs/ is a run card: short, with a command that is accepted and a model that builds.

Their estimates are those of docs/training.md, and these add up.
"""

from __future__ import annotations

import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from conftest import with_settings
from sam_blvit.cli import run
from sam_blvit.commands.recipe import named_recipe
from sam_blvit.config import FinetuneConfig, ModelConfig, compose
from sam_blvit.model.build import build_sam
from sam_blvit.train.optim import optimizer_for

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
FOR_A_GPU = [path for path in RECIPES if "A100" in path.read_text()]
SUBSET, GPUS = 223_720, 8
"""Images in 2 % of SA-1B, which are 20 tars of 11,186, and the GPUs of the large recipes."""

DECODER_GMACS, ROUNDS, IMAGES, FLOP_A_SECOND = 1.81, 4, 10 * SUBSET, 0.30 * 312e12

PACKAGED = """
import setuptools
from distutils.core import run_setup
build = run_setup("setup.py", stop_after="config").get_command_obj("build_py")
build.ensure_finalized()
build.manifest_files = {}  # finding these would write an egg-info
package = "sam_blvit.recipes"
assert package in build.packages
print(*build.find_data_files(package, build.get_package_dir(package)), sep="\\n")
"""
"""Prints the files that setuptools puts into the package of recipes."""

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def header(path: Path) -> list[str]:
    """Lines of the comment that a recipe begins with."""
    lines = path.read_text().splitlines()
    body = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").strip() for line in lines[:body]]


def command(path: Path) -> list[str]:
    """Words of the command in a recipe's header."""
    text = "\n".join(header(path))
    (line,) = re.findall(r"^\$ ((?:.*\\\n)*.*)$", text, flags=re.MULTILINE)
    return shlex.split(line.replace("\\\n", " "))


def config_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> FinetuneConfig:
    """What the header's command asks for, started in the root of the checkout."""
    monkeypatch.chdir(ROOT)
    words = command(path)
    seen: list[FinetuneConfig] = []

    def remember(config: FinetuneConfig) -> None:
        seen.append(config)

    run(remember, words[words.index("tools/finetune.py") + 1 :])
    return seen.pop()


def model_of(config: FinetuneConfig) -> ModelConfig:
    """The model that `config` trains."""
    return config.student.model_config


def test_there_are_recipes() -> None:
    assert {"sam_b_t", "sam_h_b", "sam_l_s", "sam_b_t_paper", "accelerate"} <= {path.stem for path in RECIPES}


@every_recipe
def test_every_shipped_recipe_is_read(path: Path) -> None:
    seen = []

    def remember(config: FinetuneConfig) -> None:
        seen.append(config)

    run(remember, [str(path), "--data", "data", "--teacher", "sam.pth", "--holdout", "1", "--output", "out"])
    assert len(seen) == 1


@every_recipe
def test_a_recipe_is_found_by_name(path: Path) -> None:
    seen = []

    def remember(config: FinetuneConfig) -> None:
        seen.append(config)

    flags = ["--data", "data", "--teacher", "sam.pth", "--holdout", "1", "--output", "out"]
    run(remember, [str(path), *flags])
    run(remember, ["--recipe", path.stem, *flags])
    run(remember, [*flags, f"--recipe={path.stem}"])
    assert seen[0] == seen[1] == seen[2]


def test_flags_override_a_named_recipe() -> None:
    (recipe,) = (path for path in RECIPES if path.stem == "accelerate")
    path, flags = named_recipe(["--batch-size", "1", "--recipe", "accelerate", "--lr", "-1"])
    assert path is not None
    assert path.samefile(recipe)
    assert flags == ["--batch-size", "1", "--lr", "-1"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--recipe", "nosuch"], "no recipe named 'nosuch'; there are accelerate, "),
        (["--recipe"], "no recipe named ''; there are accelerate, "),
        (["a.yaml", "--recipe", "accelerate"], "a.yaml and --recipe accelerate are both given; give one of them"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_named(words: list[str], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        named_recipe(words)


def test_a_wheel_contains_the_recipes() -> None:
    done = subprocess.run([sys.executable, "-c", PACKAGED], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {Path(line) for line in done.stdout.splitlines()}
    assert files == {path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*") if path.is_file()}


def test_a_recipe_may_replace_fields_of_the_model(tmp_path: Path) -> None:
    recipe = tmp_path / "narrow.yaml"
    recipe.write_text('model: vit_tiny\noptions: [dim=128, heads=2, layers=6, "global_layers=3,6", routers_after=]\n')
    seen: list[FinetuneConfig] = []

    def remember(config: FinetuneConfig) -> None:
        seen.append(config)

    named = ["--data", "data", "--output", "out"]
    run(remember, [str(recipe), *named])
    run(remember, [*named, "--model", "blvit_tiny", "--options", "little_layers=", "--window", "4"])
    narrow, pruned = map(model_of, seen)
    assert (narrow.dim, narrow.heads, narrow.layers, narrow.global_layers) == (128, 2, 6, (3, 6))
    assert (pruned.name, pruned.little_layers, pruned.window) == ("blvit_tiny", (), 4)


@every_recipe
def test_a_recipe_fits_on_a_screen(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 120


@every_recipe
def test_a_recipe_names_a_command_that_is_there_and_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command(path)
    assert f"configs/{path.name}" in words
    assert (ROOT / "tools/finetune.py").is_file()
    assert config_of(path, monkeypatch).run.output.parent == Path("runs")


@every_recipe
def test_a_recipe_says_what_machine_it_is_for_and_for_how_long(path: Path) -> None:
    text = " ".join(header(path))
    assert re.search(r"CPU cores|cores of an|A100", text)
    assert re.search(r"hours|minutes", text)


@pytest.mark.parametrize("path", FOR_A_GPU, ids=lambda path: path.stem)
def test_an_estimate_is_called_one(path: Path) -> None:
    text = " ".join(header(path))
    assert "Estimated, not measured" in text
    assert "--preflight" in text


@every_recipe
def test_the_model_of_a_recipe_builds_and_has_something_to_train(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(path, monkeypatch)
    with torch.device("meta"):
        sam = build_sam(model_of(config))
    assert optimizer_for(sam, config).param_groups


@every_recipe
def test_a_recipe_holds_differences_only(path: Path) -> None:
    read = yaml.safe_load(path.read_text())
    said = {name: tuple(value) if isinstance(value, list) else value for name, value in read.items()}
    told = {"data": "data", "output": "out", "teacher": Path("sam.pth"), "holdout": 1}
    for name in said.keys() - {"model", "preset"}:  # named for the reader, whatever the default
        others = {other: value for other, value in said.items() if other != name}
        without = compose(FinetuneConfig, **{**told, **others})  # type: ignore[arg-type]
        assert without != compose(FinetuneConfig, **{**told, **said}), f"{name} is what it would be anyway"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sam_b_t", "sam_b_t_same", "sam_l_s", "sam_h_b", "sam_b_t_paper", "sam_h_b_paper"])
def test_steps_in_a_header_are_ten_epochs_of_the_subset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    config = config_of(path, monkeypatch)
    images_a_step = config.machine.batch_size * config.optimizer.accumulate * GPUS
    assert images_a_step == (8 if config.preset == "paper" else 64)
    steps = -(-10 * SUBSET // images_a_step)
    assert f" {steps:,} steps" in " ".join(header(path))


@pytest.mark.parametrize("name", ["sam_b_t_paper", "sam_h_b_paper"])
def test_the_paper_s_recipe_is_the_paper_s_words(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(ROOT / "configs" / f"{name}.yaml", monkeypatch)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.encoder_lr, optimizer.decoder_lr, optimizer.epochs) == (5e-4, 5e-4, 5e-4, 10)
    assert config.student.keep_ratios == (0.25,)


@pytest.mark.parametrize("name", ["sam_b_t", "sam_b_t_same", "sam_l_s", "sam_h_b"])
def test_one_training_gives_the_whole_dial(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(ROOT / "configs" / f"{name}.yaml", monkeypatch)
    assert config.student.keep_ratios == (0.0, 0.125, 0.25, 0.5, 1.0)


def test_b_t_is_distilled_from_vit_h_whose_decoder_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(ROOT / "configs" / "sam_b_t.yaml", monkeypatch)
    assert (config.teacher.teacher_model, config.student.checkpoint) == ("vit_h", Path("sam_vit_b_01ec64.pth"))
    assert config.losses.kd_only_steps == pytest.approx(0.05 * 34_957, rel=0.01)
    control = config_of(ROOT / "configs" / "sam_b_t_same.yaml", monkeypatch)
    alone, checkpoint = config.losses.kd_only_steps, config.student.checkpoint
    theirs = {"teacher_model": "vit_h", "kd_only_steps": alone, "checkpoint": checkpoint}
    names = {"teacher": config.teacher.teacher, "output": config.run.output}
    assert with_settings(control, **theirs, **names) == config, "they differ in the teacher alone"


def test_to_accelerate_a_sam_leaves_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(ROOT / "configs" / "accelerate.yaml", monkeypatch)
    assert (config.student.freeze, config.student.window) == ("performance", 14)
    assert 1.0 not in config.student.keep_ratios, "there nothing new is used, so a step would learn nothing"


def estimates() -> list[list[str]]:
    """Cells of each row of the table of hours."""
    lines = (ROOT / "docs" / "training.md").read_text().split("| G an image | hours |")[1].split("\n\n")[0].splitlines()
    return [[cell.strip().replace(",", "") for cell in re.split(r"\|", line)[1:-1]] for line in lines[2:]]


def test_estimated_hours_follow_from_their_arithmetic() -> None:
    rows = estimates()
    assert len(rows) == 7
    for name, _, mean, teacher, masks, gmacs, hours in rows:
        of_teacher = 0.0 if teacher == "-" else float(teacher)
        total = 3 * float(mean) + of_teacher + 3 * DECODER_GMACS * ROUNDS * int(masks)
        assert float(gmacs) == pytest.approx(total, abs=1), name
        assert float(hours) == pytest.approx(2e9 * total * IMAGES / (GPUS * FLOP_A_SECOND * 3600), abs=0.05), name


def test_the_mean_of_the_encoder_is_that_of_the_keep_ratios_drawn() -> None:
    listed = (ROOT / "docs" / "training.md").read_text().split("| G an image | hours |")[1].splitlines()[2:6]
    for line in listed:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        values = [float(value.replace(",", "")) for value in cells[1].split(", ")]
        assert len(values) == 5
        assert float(cells[2].replace(",", "")) == pytest.approx(statistics.fmean(values), abs=0.06), cells[0]


@pytest.mark.parametrize("name", ["sam_b_t", "sam_b_t_same", "sam_l_s", "sam_h_b", "sam_b_t_paper", "sam_h_b_paper"])
def test_hours_of_a_recipe_are_those_of_the_table(name: str) -> None:
    (hours,) = (row[-1] for row in estimates() if row[0] == f"`{name}`")
    assert f" {hours} hours" in " ".join(header(ROOT / "configs" / f"{name}.yaml"))
