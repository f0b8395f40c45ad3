"""`eval/run_lvis.py` and `eval/run_coco.py`: from a config to a directory of results, in any number of processes.

Everything named is read and checked before the model loads. Each process takes its share of the images and keeps what
it measures as it goes; the first joins the shares, which makes the result independent of their number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from segment_anything.modeling import Sam as OriginalSam
from tqdm import tqdm

from sam_blvit.checkpoint.load import load_any, weight_files
from sam_blvit.config import EvaluationConfig
from sam_blvit.cost.latency import milliseconds
from sam_blvit.data.instances import ImageFile
from sam_blvit.evaluate.ap import RESULTS, ApWork, ap_work
from sam_blvit.evaluate.metrics.summary import SUMMARY, TABLES
from sam_blvit.evaluate.miou import MiouWork, miou_works
from sam_blvit.evaluate.provenance import gmacs, provenance
from sam_blvit.evaluate.report.worst import DIRECTORY
from sam_blvit.evaluate.shards import Shards, writable
from sam_blvit.model.sam import Sam
from sam_blvit.system.distributed import Processes, joined_processes
from sam_blvit.system.files import check_inputs_stay, first_line, output_directory, parse_json, write_json
from sam_blvit.system.machine import machine

OUTPUTS = (SUMMARY, RESULTS, *TABLES, f"{DIRECTORY}/worst.json")
"""Files of a finished run. The summary is the last to be written and the first to go."""


class Work(Protocol):
    """Something to be measured of a model, image by image."""

    @property
    def images(self) -> list[ImageFile]:
        """The photographs to be encoded."""

    @property
    def annotations(self) -> dict[str, str]:
        """Name and hash of the annotation file."""

    @property
    def about(self) -> dict[str, Any]:
        """What is measured: plain JSON values, part of the run's identity."""

    def by_image(self, sam: OriginalSam, images: Sequence[ImageFile]) -> Iterator[tuple[int, Any]]:
        """Image ids and their records, plain JSON values."""

    def finish(self, records: Sequence[Any], directory: Path) -> dict[str, Any]:
        """Write what the records of all images come to; the summary's part of this work."""


def evaluate_lvis(config: EvaluationConfig) -> list[dict[str, Any]]:
    """Measure point and box mIoU, or with boxes to prompt by LVIS AP; one summary a keep ratio and perturbation.

    Writes summary.json and what belongs to it into `config.output`, into a directory each where there are several.
    ValueError, one line, if anything is amiss. Processes but the first return nothing.
    """
    return _evaluate(config, "lvis")


def evaluate_coco(config: EvaluationConfig) -> list[dict[str, Any]]:
    """As `evaluate_lvis`, with COCO's judge of AP."""
    return _evaluate(config, "coco")


def _evaluate(config: EvaluationConfig, judge: str) -> list[dict[str, Any]]:
    works: Sequence[MiouWork] | Sequence[ApWork]
    works = [ap_work(config, judge)] if config.measures_ap else miou_works(config)
    with joined_processes() as processes:
        summaries = run_works(config, works, processes)
    if summaries:
        print(works[0].show(summaries))
    return summaries


def run_works(config: EvaluationConfig, works: Sequence[Work], processes: Processes) -> list[dict[str, Any]]:
    """Do each of `works`, all of one dataset, with `config`'s model at each of its keep ratios.

    Returns:
        The summaries, in the first process.
    """
    output_directory(config.output)
    ratios = config.keep_ratios or (None,)
    outputs = (_directory(config, work, ratio) / name for ratio in ratios for work in works for name in OUTPUTS)
    check_inputs_stay(outputs, [config.annotations, config.detections, config.protocol, *weight_files(config)])
    torch.manual_seed(0)  # weights that no file gives are the same in every process
    sam = load_any(config)
    about_model = provenance(config, sam, annotations=works[0].annotations)
    return [
        summary
        for ratio in ratios
        for work in works
        for summary in Run(config, work, sam, processes, about_model).at(ratio)
    ]


@dataclass(frozen=True)
class Run:
    """One work on one model."""

    config: EvaluationConfig
    work: Work
    sam: OriginalSam
    processes: Processes
    about_model: dict[str, Any]
    """Its provenance."""

    def at(self, keep_ratio: float | None) -> list[dict[str, Any]]:
        """The summary at `keep_ratio` (None: as the model is), in the first process; in others nothing."""
        if keep_ratio is not None:
            _set_keep_ratio(self.sam, keep_ratio)
        directory = _directory(self.config, self.work, keep_ratio)
        identity = {**self.work.about, **self.about_model, "keep_ratio": _keep_ratio(self.sam)}
        finished = _finished(directory, identity) if self.config.resume else None
        if finished is None:
            finished = self._measured(directory, identity)
        self.processes.wait()
        return [finished] if self.processes.first else []

    def _measured(self, directory: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
        shards = Shards(directory, identity, resume=self.config.resume, processes=self.processes)
        cost: dict[str, Any] = {}
        if self.processes.first:
            cost = {"macs": gmacs(self.sam), "milliseconds": self._milliseconds(), **machine(self.sam.device)}
        self.processes.wait()  # nobody disturbs the clock
        start = time.perf_counter()
        left = [image for image in self.work.images if image.image_id not in shards.done]
        mine = left[self.processes.rank :: self.processes.count]
        results = self.work.by_image(self.sam, mine)
        silent = None if self.processes.first else True  # None: where nobody watches
        shards.write(tqdm(results, desc=directory.name, total=len(mine), unit="image", disable=silent))
        self.processes.wait()
        if not self.processes.first:
            return {}
        with writable(directory):
            for name in OUTPUTS:
                (directory / name).unlink(
                    missing_ok=True
                )  # of an earlier run: a summary never stands beside others' rows
            summary = {
                **self.work.finish(shards.joined([image.image_id for image in self.work.images]), directory),
                **identity,
                **cost,
                "wall_seconds": None if shards.done else round(time.perf_counter() - start, 2),
            }
            write_json(directory / SUMMARY, summary)
        shards.remove()
        return summary

    def _milliseconds(self) -> dict[str, Any]:
        """The model's times; it runs for the first time, which tells whether a foreign one is a Sam."""
        try:
            return milliseconds(self.sam)
        except Exception as error:  # anybody's code: whatever it raises
            if isinstance(self.sam, Sam) or "out of memory" in str(error):
                raise
            raise ValueError(
                f"model={self.config.model} cannot be run as a segment_anything Sam "
                f"({type(error).__name__}: {first_line(error)}); wrap it in one"
            ) from error


def _directory(config: EvaluationConfig, work: Work, keep_ratio: float | None) -> Path:
    """Where a run writes: `output`, or where it is one of several a directory of its own."""
    parts = [] if keep_ratio is None else [f"keep-{keep_ratio:.15g}"]
    parts += [work.about["perturbation"]] if config.perturb else []
    return config.output.joinpath(*parts)


def _keep_ratio(sam: OriginalSam) -> float | None:
    return sam.image_encoder.keep_ratio if isinstance(sam, Sam) else None


def _set_keep_ratio(sam: OriginalSam, keep_ratio: float) -> None:
    if not isinstance(sam, Sam):
        raise ValueError(f"keep_ratio={keep_ratio:g}: only a big.LITTLE model of ours has one")
    sam.image_encoder.keep_ratio = keep_ratio


def _finished(directory: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary in `directory`, if that run was this one and came to its end."""
    path = directory / SUMMARY
    if not path.is_file():
        return None
    try:
        summary = parse_json(path.read_text())
    except ValueError:
        return None
    if not isinstance(summary, dict):
        return None
    same = all(summary.get(name) == value for name, value in json.loads(json.dumps(identity)).items())
    return summary if same else None
