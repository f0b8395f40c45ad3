"""The study: its recipes are accepted, it goes on where it stopped, names what failed, and its tables say what was."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import runs
from datasets import write_dataset
from processes import Command
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.cli import run
from sam_blvit.config import (
    CacheConfig,
    EvaluationConfig,
    FinetuneConfig,
    ModelConfig,
    compose,
    model_config,
    settings_of,
)
from sam_blvit.model.build import build_sam
from studies.evidence import __main__ as command
from studies.evidence import running
from studies.evidence.rows import BASELINE, DIAL, ROWS, SIZES, TABLES
from studies.evidence.running import PROGRAMS, run_chains
from studies.evidence.study import RECIPES, ROOT, EvidenceConfig, Study, Task
from studies.evidence.tables import NOT_RUN, ON_GPU, page, results
from synthetic import write_tar

Refused = Callable[..., Any]
FILES = sorted((ROOT / RECIPES).glob("*.yaml"))
every_recipe = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
every_training = pytest.mark.parametrize(("size", "row"), [(size, row) for size in SIZES for row in SIZES[size].rows])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photographs to train on, one of them left out, and two to measure on."""
    root = tmp_path_factory.mktemp("data")
    write_tar(root / "real_train" / "sa_000000.tar", range(6))
    (root / "real_train" / "val_ids.txt").write_text("5\n")
    measured = write_dataset(root / "real_eval")
    (measured / "annotations.json").rename(measured / "instances.json")
    (measured / "val2017").rename(measured / "images")
    return root


@pytest.fixture
def study(data: Path, tmp_path: Path) -> Callable[..., Study]:
    """A study in a directory of its own, of settings that are not the usual ones."""

    def of(**settings: Any) -> Study:
        return Study(EvidenceConfig(data=data, output=tmp_path / "out", **settings))

    return of


def config_of(task: Task, config_type: type) -> Any:
    """What `task`'s command is given."""
    seen = []

    def remember(config: Any) -> None:
        seen.append(config)

    remember.__annotations__["config"] = config_type
    run(remember, task.words[2:])
    return seen.pop()


def model_of(config: FinetuneConfig) -> ModelConfig:
    return config.student.model_config


# rows and recipes ---------------------------------------------------------------------------------------------------


@every_recipe
def test_a_recipe_is_short_and_says_what_it_is_and_how_it_is_run(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("# "))
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 120
    assert f"--rows {path.stem}\n" in header or f"{RECIPES}/{path.name}" in header
    assert "CPU cores" in header
    assert "Result: " in header


@every_recipe
def test_every_recipe_is_a_row_or_the_teacher(path: Path) -> None:
    assert path.stem in {row.recipe or name for name, row in ROWS.items()} | {"teacher"}


def test_a_recipe_holds_differences_only() -> None:
    for path in FILES:
        said = {name: tuple(v) if isinstance(v, list) else v for name, v in yaml.safe_load(path.read_text()).items()}
        told = {"data": Path("data"), "output": Path("out"), "teacher": Path("sam.pth")}
        for name in said.keys() - {"model", "keep_ratios"}:  # named for the reader, whatever the default
            without = compose(FinetuneConfig, **{**told, **{other: v for other, v in said.items() if other != name}})
            assert without != compose(FinetuneConfig, **{**told, **said}), (
                f"{path.name}: {name} is what it would be anyway"
            )


def test_every_row_is_in_a_table() -> None:
    assert {name for names in TABLES.values() for name in names} == set(ROWS)
    assert set(SIZES["gpu"].rows) == set(ROWS)


@every_training
def test_every_training_is_accepted_and_its_model_builds(
    size: str, row: str, study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = config_of(study(size=size).training(row, 1), FinetuneConfig)
    with torch.device("meta"):
        sam = build_sam(model_of(config))
    assert sam.config.image_size == SIZES[size].settings["image_size"]
    assert config.data.seed == 1
    if sam.config.routed and row != "sampled":
        assert config.student.keep_ratios == (sam.config.keep_ratio,), (
            "measured at a keep ratio that it was not trained for"
        )


@pytest.mark.parametrize("size", SIZES)
def test_all_rows_of_a_size_share_steps_photographs_and_start(
    size: str, study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    shared = ("image_size", "mask_side", "batch_size", "masks_per_image", "correction_rounds", "seed", "warmup_steps")
    shared += ("precision", "drop_path", "flip", "smallest_crop", "exclude", "lr")
    found = {row: config_of(study(size=size).training(row, 0), FinetuneConfig) for row in SIZES[size].rows}
    assert len({tuple(settings_of(config)[name] for name in shared) for config in found.values()}) == 1
    steps = SIZES[size].steps
    assert {config.optimizer.schedule_steps for config in found.values()} == {steps}
    alone = {row: round(SIZES[size].alone * steps) if ROWS[row].start == "distilled" else 0 for row in found}
    assert {row: config.losses.kd_only_steps for row, config in found.items()} == alone
    assert max(alone.values()) < steps
    starts = {row: config.teacher.teacher or config.student.checkpoint for row, config in found.items()}
    assert {row for row, start in starts.items() if start is None} <= {"scratch"}
    assert len(set(starts.values()) - {None}) == 1


def test_rows_are_what_they_are_called(study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    configs = {row: config_of(study(size="gpu").training(row, 0), FinetuneConfig) for row in ROWS}
    models = {row: model_of(config) for row, config in configs.items()}
    paper = model_config("blvit_tiny")
    assert not models["dense"].routed
    assert configs["dense"].teacher.teacher is not None
    assert (models["narrow"].dim, models["narrow"].layers) == (128, 12)
    assert (models["shallow"].dim, models["shallow"].layers, models["shallow"].global_layers) == (192, 8, (3, 6, 8))
    assert models["paper"].primary_keys == "all"
    assert models["paper"].router_scores == "window"
    assert models["evit"].pool == models["evo_vit"].pool == paper.window
    assert (models["evit"].broadcast, models["evo_vit"].broadcast) == (False, True)
    assert models["evit_undistilled"] == models["evit"]
    assert models["windowed"].primary_keys == models["pooled"].primary_keys == "pooled"
    assert (models["windowed"].little_windowed, models["pooled"].little_windowed) == (True, False)
    assert models["without_little"].little_layers == ()
    assert [configs[f"lambda_{weight}"].losses.distillation_weight for weight in (1, 5, 10)] == [1, 5, 10]
    assert configs["paper"].losses.distillation_weight == 2.5
    assert [models[f"keep_{share}"].keep_ratio for share in (500, 375, 125)] == [0.5, 0.375, 0.125]
    assert configs["listwise"].losses.listwise_weight == 1
    assert configs["undistilled"].teacher.teacher is None
    assert (models["sampled"].keep_ratio, configs["sampled"].student.keep_ratios) == (0.25, DIAL)


@pytest.mark.parametrize("size", SIZES)
def test_all_other_commands_are_accepted(
    size: str, study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    made = study(size=size)
    teacher, *caches = made.preparations()
    assert config_of(teacher, FinetuneConfig).student.model == "vit_tiny"
    assert [config_of(cache, CacheConfig).student.image_size for cache in caches] == [
        256 if size == "cpu" else 128
    ] * len(caches)
    assert config_of(made.miou("paper", 0), EvaluationConfig).seeds == SIZES[size].prompt_seeds
    assert config_of(made.ap("paper", 0), EvaluationConfig).boxes == "gt"
    dial = config_of(made.dial("paper", 0), EvaluationConfig)
    assert (dial.keep_ratios, dial.seeds) == (DIAL, SIZES[size].prompt_seeds)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"size": "huge"}, "size='huge' is not one of reduced, cpu, gpu"),
        ({"rows": ("papr",)}, "rows: 'papr' is not one of dense, narrow, "),
        ({"rows": ("paper", "dense", "paper")}, "rows: 'paper' is named twice; name each once$"),
        ({"seeds": (-1,)}, "seed=-1 is negative"),
        ({"seeds": (0, 1, 1)}, "seeds: 1 is named twice; name each once$"),
        ({"parallel": 0}, "parallel=0 is not a positive number"),
        ({"steps": 0}, "steps=0 is not a positive number"),
        ({"teacher": Path("none.pth")}, "teacher none.pth is not a file; leave it out to have one trained"),
        ({"data": Path("nowhere")}, "data nowhere lacks real_train/val_ids.txt; --help says what it holds"),
    ],
)
def test_a_mistake_is_one_line(settings: dict[str, Any], told: str, data: Path, refused: Refused) -> None:
    with refused(ValueError, f"^{told}"):
        EvidenceConfig(**{"data": data, "output": Path("out"), **settings})


# running ------------------------------------------------------------------------------------------------------------


def python(tmp_path: Path, name: str, code: str) -> Task:
    """A task that runs `code`."""
    script = tmp_path / f"{name}.py"
    script.write_text(code)
    return Task(name, ("python", str(script)), tmp_path / name)


def test_a_finished_task_is_not_run_again(tmp_path: Path) -> None:
    task = python(tmp_path, "once", "print('ran')")
    assert run_chains([[task]]) == run_chains([[task]]) == []
    assert task.log.read_text() == "ran\n"


def test_a_task_is_run_again_when_its_words_or_files_change(tmp_path: Path) -> None:
    task = python(tmp_path, "again", "print('ran')")
    run_chains([[task]])
    more = Task(task.name, (*task.words, "--more"), task.directory)
    assert not more.finished
    run_chains([[more]])
    (tmp_path / "again.py").write_text("print('changed')")
    run_chains([[more]])
    assert task.log.read_text() == "ran\nran\nchanged\n"


def test_what_a_recipe_says_of_itself_is_no_change_of_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    task = Task("task", ("python", "-c", "", str(recipe)), tmp_path / "task")
    recipe.write_text("# Result: not run\nmodel: blvit_tiny\n")
    run_chains([[task]])
    recipe.write_text("# Result: 47.8\nmodel: blvit_tiny\n")
    assert task.finished
    recipe.write_text("# Result: 47.8\nmodel: vit_tiny\n")
    assert not task.finished


def test_a_recipe_edited_while_its_task_runs_is_not_vouched_for(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: blvit_tiny\n")
    edit = "import sys; open(sys.argv[1], 'w').write('model: vit_tiny')"
    task = Task("task", ("python", "-c", edit, str(recipe)), tmp_path / "task")
    assert run_chains([[task]]) == []
    assert not task.finished
    recipe.write_text("model: blvit_tiny\n")
    assert task.finished


def test_a_failure_ends_its_row_alone_and_is_named_with_its_log(tmp_path: Path) -> None:
    bad = python(tmp_path, "bad", "raise SystemExit('no such thing')")
    after = python(tmp_path, "after", "")
    other = python(tmp_path, "other", "")
    (error,) = run_chains([[bad, after], [other]])
    assert str(error) == f"bad ended with code 1 (no such thing); see {bad.log}"
    assert [task.finished for task in (bad, after, other)] == [False, False, True]


def test_chains_run_at_once_and_divide_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    code = """
import os, pathlib, time
here = pathlib.Path(__file__)
here.with_suffix(".here").touch()
while len(list(here.parent.glob("*.here"))) < 2: time.sleep(0.01)
print(os.environ["OMP_NUM_THREADS"])
"""
    tasks = [python(tmp_path, name, code) for name in ("one", "two")]
    assert run_chains([[task] for task in tasks], parallel=2) == []
    assert [task.log.read_text() for task in tasks] == ["4\n", "4\n"]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT], ids=lambda by: by.name)
def test_whoever_ends_it_ends_what_it_runs(by: signal.Signals, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    long = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = f"""
import signal, sys
from studies.evidence.__main__ import evidence
from studies.evidence.running import PROGRAMS
from sam_blvit.cli import run
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
PROGRAMS["python"] = (sys.executable, "-c", {long!r})
run(evidence, ["--data", {str(data)!r}, "--output", {str(output)!r}])
"""
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    log = output / "teacher.log"
    while not log.is_file() or not log.read_text():
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(by)
    assert driver.wait(60) == 128 + by
    (child,) = map(int, log.read_text().split())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert [*output.glob("*.log")] == [log], "what comes after it was begun"


def test_what_starts_as_the_end_comes_is_ended_too(tmp_path: Path) -> None:
    threads = []

    class Slow(Task):
        """The end comes while it is looked at whether it has come to its end."""

        @property
        def finished(self) -> bool:
            threads.append(threading.current_thread())
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGTERM)
            time.sleep(1)
            return False

    script = tmp_path / "long.py"
    script.write_text("import time; time.sleep(20); print('ran on')")
    task = Slow("long", ("python", str(script)), tmp_path / "long")
    with pytest.raises(SystemExit):
        run_chains([[task]])
    threads[0].join()
    assert task.log.read_text() == ""


# tables -------------------------------------------------------------------------------------------------------------


def make(study: Study, name: str, seed: int, *, shift: float, **changes: Any) -> None:
    """As if row `name` had been trained and measured: every IoU 40 + `shift`, the mean as the summary has it."""
    training, miou = study.training(name, seed), study.miou(name, seed)
    training.directory.mkdir(parents=True)
    (training.directory / "last.safetensors").touch()
    mean = {"instance": runs.by_prompt(40 + shift, 20 + shift, 30 + shift)}
    runs.miou_run(miou.directory, rows=runs.rows_of(shift=shift), miou=mean, parameters=5_000_000, **changes)
    for task in (training, miou):
        task.finish(task.identity())


def make_benchmark(study: Study) -> None:
    """As if all that is trained had been timed, in its order: 10 ms, 11 ms, ... at the first side, 20 ms, 21 ms, ...
    at the second."""
    task = study.benchmark()
    models = [word for word in task.words if word.endswith(".safetensors")]
    machine = {"processor": "EPYC", "threads": 2, "torch": "2.15.0"}
    groups = []
    for tens, side in enumerate(study.size.sides, start=1):
        cells = [{"model": model, "device": "cpu", "side": side} for model in models]
        rows = [{"cell": cell, "encoder": {"median": 10.0 * tens + place}} for place, cell in enumerate(cells)]
        groups.append({"machine": machine, "rows": rows})
    task.directory.mkdir()
    (task.directory / "benchmark.json").write_text(json.dumps({"groups": groups}))
    task.finish(task.identity())


def table_line(study: Study, title: str, row: str) -> dict[str, str]:
    """The cells of `row` in the table called `title`."""
    section = page(study, results(study)).split(f"## {title}")[1].split("## ")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    (found,) = [line for line in lines if line[0] == f"`{row}`"]
    return dict(zip(lines[0], found, strict=True))


def test_a_line_has_what_was_measured(study: Callable[..., Study]) -> None:
    made = study(size="cpu")
    make(made, BASELINE, 0, shift=0)
    make(made, "paper", 0, shift=2)
    ap = made.ap("paper", 0)
    runs.ap_run(ap.directory)
    ap.finish(ap.identity())
    make_benchmark(made)
    assert table_line(made, "Table 2", "paper") == {
        "row": "`paper`",
        "": ROWS["paper"].what,
        "seeds": "0",
        "1-point": "22.0",
        "3-point": "32.0",
        "box": "42.0",
        **{f"{prompt} - dense": "+2.00 (+2.00 to +2.00)" for prompt in ("1-point", "3-point", "box")},
        "AP": "12.3",
        "GMACs, paper's": "4.00",
        "GMACs, all": "4.50",
        "M parameters": "5.0",
        "ms, CPU, 256 px": "11.0",
        "ms, CPU, 512 px": "21.0",
        "ms, GPU, 256 px": NOT_RUN,
        "ms, GPU, 512 px": NOT_RUN,
    }


def test_seeds_of_training_are_averaged_and_compared_each_with_its_own(study: Callable[..., Study]) -> None:
    made = study(seeds=(0, 1))
    for name, shifts in {BASELINE: (0, 10), "paper": (1, 13)}.items():
        for seed, shift in enumerate(shifts):
            make(made, name, seed, shift=shift)
    line = table_line(made, "Table 3", "paper")
    assert (line["seeds"], line["box"]) == ("0, 1", "47.0")
    assert line["box - dense"] == "+2.00 (+2.00 to +2.00)"


def test_rows_of_other_seeds_of_training_are_not_compared(study: Callable[..., Study]) -> None:
    made = study(seeds=(0, 1))
    for name, seeds in {BASELINE: (0, 1), "paper": (0,), "narrow": (0, 1)}.items():
        for seed in seeds:
            make(made, name, seed, shift=seed)
    lines = [table_line(made, "Table 2", name) for name in ("paper", "narrow")]
    assert [line["box - dense"] for line in lines] == [NOT_RUN, "+0.00 (+0.00 to +0.00)"]
    assert lines[0]["box"] == "40.0"


def test_what_was_not_run_is_said(study: Callable[..., Study]) -> None:
    made = study()
    make(made, "paper", 0, shift=0)
    line = table_line(made, "Table 2", "narrow")
    assert line["seeds"] == NOT_RUN
    assert set(list(line.values())[3:]) == {"-"}
    line = table_line(made, "Table 2", "paper")
    assert line["box"] == "40.0"
    assert {line[name] for name in ("box - dense", "AP", "ms, CPU, 128 px")} == {NOT_RUN}
    assert "Machine: not run." in page(made, results(made))


def test_what_was_made_otherwise_counts_as_not_run(study: Callable[..., Study]) -> None:
    make(study(steps=3), "paper", 0, shift=0)
    assert table_line(study(steps=4), "Table 2", "paper")["seeds"] == NOT_RUN


def test_a_caption_says_size_steps_seeds_and_machine(study: Callable[..., Study]) -> None:
    made = study(steps=7)
    make(made, "paper", 3, shift=0)
    make_benchmark(made)
    text = page(made, results(made))
    for words in ("`reduced`: 128 px, 7 steps of 4 photographs", "Seeds of training: 3; of prompts: 0."):
        assert words in text
    assert "Machine: EPYC, 2 threads, torch 2.15.0. On a GPU: `python -m studies.evidence --data DATA" in text


def test_a_caption_names_a_machine_once(study: Callable[..., Study]) -> None:
    made = study(size="cpu")
    make(made, "paper", 0, shift=0)
    make_benchmark(made)
    assert page(made, results(made)).count("EPYC") == 1


def test_the_caption_of_a_gpu_names_no_other(study: Callable[..., Study]) -> None:
    made = study(size="gpu")
    assert "On a GPU" not in page(made, results(made))


def test_the_command_on_a_gpu_is_one(data: Path) -> None:
    seen: list[EvidenceConfig] = []

    def remember(config: EvidenceConfig) -> None:
        seen.append(config)

    remember.__annotations__["config"] = EvidenceConfig
    run(remember, ON_GPU.replace("DATA", str(data)).split()[3:])
    assert seen[0].size == "gpu"


def test_every_command_that_was_run_is_listed(study: Callable[..., Study]) -> None:
    made = study()
    make(made, "paper", 0, shift=0)
    listed = page(made, results(made)).split("```")[1].splitlines()
    assert [line.split(" --")[0] for line in listed if line] == [
        "python tools/finetune.py configs/evidence/paper.yaml",
        "python eval/run_lvis.py",
    ]


def test_the_dial_has_a_line_for_each_keep_ratio(study: Callable[..., Study]) -> None:
    made = study(size="gpu")
    make(made, "sampled", 0, shift=0)
    dial = made.dial("sampled", 0)
    for ratio in DIAL:
        mean = {"instance": runs.by_prompt(100 * ratio, 0, 0)}
        runs.miou_run(dial.directory / f"keep-{ratio:g}", miou=mean)
    dial.finish(dial.identity())
    section = page(made, results(made)).split("## The dial")[1].split("## ")[0]
    cells = [line.split("|") for line in section.splitlines() if line.startswith("| `sampled`")]
    assert [(line[2].strip(), line[5].strip()) for line in cells] == [(f"{r:g}", f"{100 * r:.1f}") for r in DIAL]


# end to end ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A dense teacher that has learnt nothing."""
    path = tmp_path / "teacher.safetensors"
    save_sam(build_sam(model_config("vit_tiny", image_size=128)), path)
    return path


def test_the_study_is_made_and_goes_on_where_it_stopped(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "subprocess", SimpleNamespace(Popen=Command, STDOUT=subprocess.STDOUT))
    output = tmp_path / "out"
    config = EvidenceConfig(data=data, output=output, teacher=teacher, steps=1, rows=("paper",))
    command.evidence(config)
    found = json.loads((output / "evidence.json").read_text())
    (row,) = [row for row in found["rows"] if row["row"] == "paper"]
    assert row["seeds"] == [0]
    assert all(0 <= row["miou"][prompt] <= 100 for prompt in row["miou"])
    assert row["ap"] is not None
    assert row["encoder_ms"]["cpu"]["128"] > 0
    assert len(found["commands"]) == 5
    assert "| `paper` |" in (output / "evidence.md").read_text()
    capsys.readouterr()
    command.evidence(config)
    assert capsys.readouterr().out.count("finished before") == 5


def test_where_a_row_cannot_be_made_the_tables_are_written_all_the_same(
    data: Path, teacher: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvidenceConfig(data=data, output=tmp_path / "out", teacher=teacher, rows=("paper", "random"))
    (cache,) = Study(config).preparations()
    cache.finish(cache.identity())
    monkeypatch.setitem(PROGRAMS, "python", (sys.executable, "-c", "raise SystemExit('error: no room')"))
    log = config.output / "paper" / "seed_0" / "training.log"
    told = f"row paper, seed 0: training ended with code 1 (error: no room); see {log}; 1 more failed"
    with refused(ValueError, f"^{re.escape(told)}$"):
        command.evidence(config)
    assert "| `paper` |" in (config.output / "evidence.md").read_text()


def test_without_a_teacher_nothing_is_made(
    data: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROGRAMS, "python", (sys.executable, "-c", "raise SystemExit('error: no room')"))
    with refused(ValueError, "^the teacher ended with code 1"):
        command.evidence(EvidenceConfig(data=data, output=tmp_path / "out"))
    assert not (tmp_path / "out" / "paper").exists()
