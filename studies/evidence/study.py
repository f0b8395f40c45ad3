"""The commands of the study, and which of them have finished.

A finished command is not run again as long as its words and the files that they name are unchanged.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sam_blvit.config.commands import check_seed
from sam_blvit.evaluate.report.read_runs import read_json
from sam_blvit.system.files import file_sha256, write_json
from studies.evidence.rows import ALL, DIAL, DIAL_ROWS, ROWS, SIZES, STUDENT, Settings

ROOT = Path(__file__).parents[2]
"""Where commands run, and from where their paths are named."""
RECIPES = Path("configs/evidence")
LVIS, COCO = ("python", "eval/run_lvis.py"), ("python", "eval/run_coco.py")
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
"""What encoders are timed on, if there is one, and how people call it."""


@dataclass(frozen=True, kw_only=True)
class EvidenceConfig:
    """Which part of the study is made."""

    data: Path
    """Directory with real_train (SA-1B's layout, and val_ids.txt, which training leaves out) and real_eval
    (instances.json and images)."""
    output: Path
    """Directory of all runs, evidence.md and evidence.json. Started again, it resumes where it stopped; use a new
    directory for other settings."""
    size: str = "reduced"
    """reduced (128 px, a few steps: whether all works), cpu (256 px) or gpu (512 px, two seeds, every row)."""
    rows: tuple[str, ...] = ()
    """Rows to make. Default: the size's. The tables also have those that were made before."""
    seeds: tuple[int, ...] = ()
    """Seeds of training. Default: the size's."""
    teacher: Path | None = None
    """Checkpoint of the dense teacher, which all rows start from. Default: one is trained first."""
    parallel: int = 1
    """Rows that are made at once; on a CPU they divide its cores."""
    steps: int | None = None
    """Steps of every training. Default: the size's."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size={self.size!r} is not one of {', '.join(SIZES)}")
        for row in self.rows:
            if row not in ROWS:
                raise ValueError(f"rows: {row!r} is not one of {', '.join(ROWS)}")
        for seed in self.seeds:
            check_seed(seed)
        for name, given in {"rows": self.rows, "seeds": self.seeds}.items():
            if twice := [value for value in given if given.count(value) > 1]:
                raise ValueError(f"{name}: {twice[0]!r} is named twice; name each once")
        for name in ("parallel", "steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} is not a positive number")
        if self.teacher is not None and not self.teacher.is_file():
            raise ValueError(f"teacher {self.teacher} is not a file; leave it out to have one trained")
        for path in (self.exclude, self.annotations):
            if not path.is_file():
                raise ValueError(f"data {self.data} lacks {path.relative_to(self.data)}; --help says what it holds")

    @property
    def exclude(self) -> Path:
        """Ids of the photographs that training leaves out."""
        return self.data / "real_train" / "val_ids.txt"

    @property
    def annotations(self) -> Path:
        """What models are measured on."""
        return self.data / "real_eval" / "instances.json"


@dataclass(frozen=True)
class Task:
    """A command and its output directory. Its log and the record that it has finished are beside the directory."""

    name: str
    words: tuple[str, ...]
    directory: Path

    @property
    def log(self) -> Path:
        """All of its output."""
        return self.directory.with_suffix(".log")

    @property
    def _mark(self) -> Path:
        return self.directory.with_suffix(".json")

    @property
    def finished(self) -> bool:
        """Whether this command has finished with the current content of its files."""
        return self._mark.is_file() and read_json(self._mark) == self.identity()

    def finish(self, identity: Mapping[str, Any]) -> None:
        """Record that it has finished, with the `identity` that it had when it started."""
        write_json(self._mark, identity)

    def identity(self) -> dict[str, Any]:
        """Its words, and the current content of the files that they name."""
        files = [word for word in self.words if (ROOT / word).is_file()]
        return {"command": shlex.join(self.words), "files": {word: _content(ROOT / word) for word in files}}


def _content(path: Path) -> str:
    """The settings of a recipe, or the hash of any other file."""
    if path.suffix != ".yaml":
        return file_sha256(path)
    return "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))


OfSeed = Callable[[str, int], Task]
"""A task of a row, by the row's name and a seed of training."""


class Study:
    """The tasks of the study and their state."""

    def __init__(self, config: EvidenceConfig) -> None:
        self.config = config
        self.size = SIZES[config.size]
        self.steps = config.steps or self.size.steps
        self.teacher = config.teacher or config.output / "teacher" / "last.safetensors"

    def preparations(self) -> list[Task]:
        """The teacher and its embeddings, which all rows need."""
        tasks = []
        output = self.config.output
        if self.config.teacher is None:
            steps = self.config.steps or self.size.teacher_steps
            tasks.append(self._training("the teacher", "teacher", {"schedule_steps": steps}, output / "teacher"))
        if self.size.cached:
            shared = {name: self.size.settings[name] for name in ("image_size", "workers")}
            settings = {**self._photographs, "teacher": _named(self.teacher), "model": "vit_tiny", **shared}
            settings["precision"] = ALL["precision"]
            tasks.append(_task("the teacher's embeddings", ("python", "tools/cache_teacher.py"), settings, self._cache))
        return tasks

    def training(self, name: str, seed: int) -> Task:
        """The training of row `name`."""
        row, teacher = ROWS[name], _named(self.teacher)
        settings: dict[str, Any] = {"schedule_steps": self.steps, "seed": seed}
        if row.start == "continued":
            settings["checkpoint"] = teacher
        elif row.start == "distilled":
            settings |= {"teacher": teacher, "kd_only_steps": round(self.size.alone * self.steps)}
            settings |= {"teacher_cache": _named(self._cache)} if self.size.cached else {}
        settings = {**STUDENT, **settings, **row.settings}
        return self._training(_told(name, seed, "training"), row.recipe or name, settings, self._place(name, seed))

    def miou(self, name: str, seed: int) -> Task:
        """mIoU by the paper's protocol."""
        settings = {**self._measured(name, seed), "protocol": "blvit", "seeds": self.size.prompt_seeds}
        return _task(_told(name, seed, "mIoU"), LVIS, settings, self._place(name, seed, "lvis"))

    def ap(self, name: str, seed: int) -> Task:
        """AP with the annotated boxes."""
        settings = {**self._measured(name, seed), "boxes": "gt"}
        return _task(_told(name, seed, "AP"), COCO, settings, self._place(name, seed, "coco"))

    def dial(self, name: str, seed: int) -> Task:
        """mIoU along the keep ratio."""
        settings = {**self._measured(name, seed), "protocol": "blvit", "seeds": self.size.prompt_seeds}
        settings["keep_ratios"] = DIAL
        return _task(_told(name, seed, "dial"), LVIS, settings, self._place(name, seed, "dial"))

    def chain(self, name: str, seed: int) -> list[Task]:
        """All of a row, in order."""
        tasks = [self.training(name, seed), self.miou(name, seed), self.ap(name, seed)]
        return [*tasks, self.dial(name, seed)] if self.size.dial and name in DIAL_ROWS else tasks

    def benchmark(self) -> Task:
        """Milliseconds of every row that is trained; of one device and side, in turn in one process."""
        devices = [name for name in DEVICES if name == "cpu" or torch.cuda.is_available()]
        settings = {"devices": devices, "dtypes": "bfloat16", "sides": self.size.sides}
        models = [model for name in ROWS if (model := self.timed(name))]
        program = ("sam-blvit", "benchmark", *models)
        return _task("milliseconds", program, settings, self.config.output / "benchmark")

    def timed(self, name: str) -> str | None:
        """The model of row `name` that is timed: its first; None if none is trained."""
        trained = self.seeds_of(name, self.training)
        return self._model(name, trained[0]) if trained else None

    def seeds_of(self, name: str, task: OfSeed) -> list[int]:
        """Seeds for which `task` of row `name`, and its training, have finished."""
        there = (self.config.output / name).glob("seed_*")
        seeds = sorted(int(directory.name.removeprefix("seed_")) for directory in there)
        return [seed for seed in seeds if self.training(name, seed).finished and task(name, seed).finished]

    def finished(self) -> list[Task]:
        """Every task that has finished."""
        rows = [task for name in ROWS for seed in self.seeds_of(name, self.training) for task in self.chain(name, seed)]
        return [task for task in (*self.preparations(), *rows, self.benchmark()) if task.finished]

    @property
    def _photographs(self) -> dict[str, Any]:
        return {"data": _named(self.config.exclude.parent), "exclude": _named(self.config.exclude)}

    @property
    def _cache(self) -> Path:
        return self.config.output / "teacher_cache"

    def _training(self, told: str, recipe: str, settings: Settings, directory: Path) -> Task:
        shared = {**self._photographs, **ALL, **self.size.settings}
        program = ("python", "tools/finetune.py", str(RECIPES / f"{recipe}.yaml"))
        return _task(told, program, {**shared, **settings}, directory)

    def _measured(self, name: str, seed: int) -> dict[str, Any]:
        annotations = self.config.annotations
        images = _named(annotations.with_name("images"))
        return {"model": self._model(name, seed), "annotations": _named(annotations), "images": images, "resume": True}

    def _model(self, name: str, seed: int) -> str:
        return _named(self._place(name, seed) / "last.safetensors")

    def _place(self, name: str, seed: int, part: str = "training") -> Path:
        return self.config.output / name / f"seed_{seed}" / part


def _told(name: str, seed: int, part: str) -> str:
    return f"row {name}, seed {seed}: {part}"


def _named(path: Path) -> str:
    """`path` as it is named in `ROOT`."""
    return os.path.relpath(path, ROOT)


def _task(told: str, program: Iterable[str], settings: Settings, directory: Path) -> Task:
    """`program` with `settings` as flags, its output in `directory`."""
    words = list(program)
    for name, value in {**settings, "output": _named(directory)}.items():
        several = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name.replace('_', '-')}", *(str(one) for one in several if one is not True)]
    return Task(told, tuple(words), directory)
