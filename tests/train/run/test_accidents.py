"""Recoverable failures are counted and reported, and too many of them stop the run."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sam_blvit.config import FinetuneConfig, compose
from sam_blvit.data.samples import Damaged, Sample
from sam_blvit.system.distributed import Processes
from sam_blvit.train.batches import Batch
from sam_blvit.train.run.failures import TooMany, count_bad_step, count_damaged
from sam_blvit.train.run.state import Progress

ALONE = Processes()
Refused = Callable[..., Any]


class Joined(Processes):
    """The first of two processes; the other one's answers are made up."""

    theirs: Any = None

    def gathered(self, item: Any) -> list[Any]:
        return [item, self.theirs]


def joined(theirs: Any) -> Processes:
    processes = Joined(rank=0, count=2)
    object.__setattr__(processes, "theirs", theirs)
    return processes


@pytest.fixture
def progress() -> Progress:
    return Progress(identity={}, origin={}, step=7)


def config(output: Path, **options: Any) -> FinetuneConfig:
    return compose(FinetuneConfig, data=Path("data"), output=output, **options)


def damaged(*image_ids: int) -> Batch:
    return [Damaged(image_id, f"sa_{image_id} is damaged") for image_id in image_ids]


def sample(image_id: int) -> Sample:
    return Sample(
        epoch=0,
        image_id=image_id,
        image=torch.zeros(3, 16, 16, dtype=torch.uint8),
        masks=torch.zeros(0, 16, 16, dtype=torch.bool),
        boxes=torch.zeros(0, 4),
        ann_ids=(),
        valid=(16, 16),
    )


# photographs that cannot be used --------------------------------------------------------------------------------------


def test_a_damaged_photograph_is_counted_and_said_with_its_reason(progress: Progress) -> None:
    with pytest.warns(UserWarning, match="^left out: sa_3 is damaged$"):
        count_damaged([[sample(1)], damaged(3)], progress, total=1000, processes=ALONE)
    assert progress.damaged == {"3": "sa_3 is damaged"}


def test_the_same_photograph_in_a_later_epoch_is_neither_counted_nor_said_again(progress: Progress) -> None:
    with pytest.warns(UserWarning, match="left out"):
        count_damaged([damaged(3)], progress, total=1000, processes=ALONE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        count_damaged([damaged(3)], progress, total=1000, processes=ALONE)
    assert len(progress.damaged) == 1


def test_one_in_a_thousand_may_be_damaged(progress: Progress, refused: Refused) -> None:
    with pytest.warns(UserWarning, match="left out"):
        count_damaged([damaged(3, 4)], progress, total=2000, processes=ALONE)
    told = re.escape("3 of 2000 photographs cannot be used, more than 0.1%; the last: sa_5 is damaged; fix them")
    with pytest.warns(UserWarning, match="left out"), refused(ValueError, told):
        count_damaged([damaged(5)], progress, total=2000, processes=ALONE)


def test_a_single_one_may_be_damaged_however_few_there_are(progress: Progress, refused: Refused) -> None:
    with pytest.warns(UserWarning, match="left out"):
        count_damaged([damaged(3)], progress, total=2, processes=ALONE)
    with pytest.warns(UserWarning, match="left out"), refused(TooMany, "2 of 2 photographs cannot be used"):
        count_damaged([damaged(4)], progress, total=2, processes=ALONE)


def test_what_other_processes_could_not_use_counts_too(progress: Progress) -> None:
    with pytest.warns(UserWarning, match="left out"):
        count_damaged([damaged(3)], progress, total=9000, processes=joined({"3": "as here", "8": "only there"}))
    assert set(progress.damaged) == {"3", "8"}


def test_only_the_first_process_says_it(progress: Progress, recwarn: pytest.WarningsRecorder) -> None:
    count_damaged([damaged(3)], progress, total=1000, processes=Processes(rank=1, count=1))
    assert progress.damaged
    assert not recwarn.list


# steps that were skipped ----------------------------------------------------------------------------------------------


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "bad_steps.jsonl").read_text().splitlines()]


def test_a_skipped_step_is_written_down_with_the_photographs_of_all_its_batches(
    progress: Progress, tmp_path: Path
) -> None:
    batches: list[Batch] = [[sample(1), sample(2)], [*damaged(9), sample(4)]]
    with pytest.warns(UserWarning, match="^step 7 skipped: its gradient's norm is nan$"):
        count_bad_step(batches, float("nan"), progress, config=config(tmp_path), processes=ALONE)
    assert progress.bad_steps == 1
    assert rows(tmp_path) == [{"step": 7, "gradient_norm": "nan", "images": [1, 2, 4]}]


def test_the_photographs_of_other_processes_are_written_down_too(progress: Progress, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="skipped"):
        count_bad_step([[sample(1)]], float("inf"), progress, config=config(tmp_path), processes=joined([5, 6]))
    assert rows(tmp_path)[0]["images"] == [1, 5, 6]


def test_too_many_skipped_steps_end_the_run_and_name_the_file(
    progress: Progress, tmp_path: Path, refused: Refused
) -> None:
    settings = config(tmp_path, max_bad_steps=2)
    with pytest.warns(UserWarning, match="skipped"):
        count_bad_step([[sample(1)]], float("nan"), progress, config=settings, processes=ALONE)
    told = re.escape(f"2 steps had a gradient that was not finite; {tmp_path / 'bad_steps.jsonl'} lists their images")
    with pytest.warns(UserWarning, match="skipped"), refused(ValueError, told):
        count_bad_step([[sample(2)]], float("nan"), progress, config=settings, processes=ALONE)
    assert [row["images"] for row in rows(tmp_path)] == [[1], [2]]


def test_only_the_first_process_writes(progress: Progress, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    others = Processes(rank=1, count=1)
    count_bad_step([[sample(1)]], float("nan"), progress, config=config(tmp_path), processes=others)
    assert progress.bad_steps == 1
    assert list(tmp_path.iterdir()) == []
    assert not recwarn.list
