"""Records of a run on disk: in the order asked for, exact, and not lost when a process or the disk gives up."""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sam_blvit.evaluate.shards import Shards
from sam_blvit.system.distributed import Processes

Refused = Callable[..., Any]

IDENTITY = {"model": "blvit_tiny", "protocol": {"name": "blvit"}, "prompt_seeds": (0, 1)}


class OneOf(Processes):
    """One of several processes that a test plays one after the other, so that none can wait for another."""

    def wait(self) -> None:
        """Returns at once."""


def shards(
    directory: Path,
    *,
    resume: bool = False,
    rank: int = 0,
    count: int = 1,
    identity: Mapping[str, Any] = IDENTITY,
) -> Shards:
    return Shards(directory, identity, resume=resume, processes=OneOf(rank, count))


def record(image_id: int) -> dict[str, Any]:
    return {"iou": [image_id / 7, image_id / 3], "skipped": [image_id]}


def measure(directory: Path, image_ids: list[int], *, count: int, resume: bool = False) -> None:
    """`count` processes measure what of `image_ids` is not done, each its share, as evaluation does."""
    processes = [shards(directory, resume=resume, rank=rank, count=count) for rank in range(count)]
    for rank, process in enumerate(processes):
        left = [image_id for image_id in image_ids if image_id not in process.done]
        process.write((image_id, record(image_id)) for image_id in left[rank::count])


def written(directory: Path) -> list[Path]:
    return sorted((directory / "shards").iterdir())


def tear(path: Path, rest: bytes = b'{"image_id": 99, "reco') -> None:
    """Leave half a line at the end of `path`, as a killed process does."""
    with path.open("ab") as file:
        file.write(rest)


def result(image_id: int) -> tuple[int, Any]:
    return image_id, record(image_id)


# order and values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_records_come_back_in_the_order_asked_for_whatever_wrote_them(tmp_path: Path, count: int) -> None:
    image_ids = [40, 7, 100, 3, 12, 1, 99, 8, 21, 30]
    measure(tmp_path, image_ids, count=count)
    assert shards(tmp_path, resume=True).joined(image_ids) == [record(image_id) for image_id in image_ids]


def test_each_process_writes_a_file_of_its_own(tmp_path: Path) -> None:
    measure(tmp_path, [1, 2, 3, 4], count=2)
    assert len(written(tmp_path)) == 2


def test_a_record_is_on_disk_before_the_next_is_measured(tmp_path: Path) -> None:
    seen = []

    def results() -> Iterator[tuple[int, Any]]:
        for image_id in (1, 2, 3):
            yield result(image_id)
            seen.append(shards(tmp_path, resume=True).done)

    shards(tmp_path).write(results())
    assert [list(done) for done in seen] == [[1], [1, 2], [1, 2, 3]]


def test_floats_come_back_exactly(tmp_path: Path) -> None:
    values = [1 / 3, 0.1 + 0.2, 5e-324, 1.7976931348623157e308, 99.99999999999999, -2 / 7, 12345678.9]
    shards(tmp_path).write([(1, values)])
    assert shards(tmp_path, resume=True).joined([1]) == [values]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_and_the_rest_is_kept(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        shards(tmp_path).write([result(1), (2, {"iou": value}), result(3)])
    assert shards(tmp_path, resume=True).done == {1: record(1)}


def test_a_missing_record_is_named_with_how_many_there_are(tmp_path: Path, refused: Refused) -> None:
    measure(tmp_path, [1, 2, 3], count=1)
    with refused(ValueError, match=r"shards: 2 of 5 images have no record, first 8; .*--resume"):
        shards(tmp_path, resume=True).joined([1, 8, 2, 9, 3])


def test_removed_records_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    measure(tmp_path, [1, 2], count=2)
    shards(tmp_path, resume=True).remove()
    assert list(tmp_path.iterdir()) == [tmp_path / "summary.json"]
    assert shards(tmp_path).done == {}


# going on ------------------------------------------------------------------------------------------------------------


def test_resuming_twice_with_other_numbers_of_processes_loses_nothing(tmp_path: Path) -> None:
    image_ids = list(range(10))
    measure(tmp_path, image_ids[:3], count=1)
    measure(tmp_path, image_ids[:7], count=2, resume=True)
    measure(tmp_path, image_ids, count=3, resume=True)
    assert shards(tmp_path, resume=True).joined(image_ids) == [record(image_id) for image_id in image_ids]


def test_what_is_done_is_not_measured_again(tmp_path: Path) -> None:
    measure(tmp_path, [1, 2], count=2)
    assert shards(tmp_path, resume=True).done == {1: record(1), 2: record(2)}


def test_resuming_after_a_resume_that_finished_nothing_loses_nothing(tmp_path: Path) -> None:
    measure(tmp_path, [1, 2], count=2)
    for _ in range(2):
        shards(tmp_path, resume=True).write([])
    measure(tmp_path, [1, 2, 3], count=1, resume=True)
    assert shards(tmp_path, resume=True).joined([1, 2, 3]) == [record(1), record(2), record(3)]


def test_an_unfinished_run_is_refused_unless_it_is_to_go_on(tmp_path: Path, refused: Refused) -> None:
    measure(tmp_path, [1], count=1)
    with refused(ValueError, match=r"output .*shards is an unfinished run; go on with --resume, or delete it"):
        shards(tmp_path)


def test_a_fresh_directory_may_be_resumed(tmp_path: Path) -> None:
    assert shards(tmp_path / "not" / "there", resume=True).done == {}


def test_another_run_is_refused_with_what_differs(tmp_path: Path, refused: Refused) -> None:
    measure(tmp_path, [1], count=1)
    with refused(ValueError, match=r"\(model was blvit_tiny, is vit_b\); delete it") as error:
        shards(tmp_path, resume=True, identity={**IDENTITY, "model": "vit_b"})
    assert "protocol" not in str(error.value)


def test_another_run_is_refused_with_everything_that_differs(tmp_path: Path, refused: Refused) -> None:
    measure(tmp_path, [1], count=1)
    other = {"model": "blvit_tiny", "protocol": {"name": "ritm"}, "prompt_seeds": (0, 1), "git": "abc"}
    with refused(ValueError, match=r"protocol was .*blvit.*, is .*ritm.*; git was None, is abc"):
        shards(tmp_path, resume=True, identity=other)


def test_a_run_that_says_less_of_itself_is_another(tmp_path: Path, refused: Refused) -> None:
    measure(tmp_path, [1], count=1)
    less = {name: value for name, value in IDENTITY.items() if name != "model"}
    with refused(ValueError, match="model was blvit_tiny, is None"):
        shards(tmp_path, resume=True, identity=less)


def test_nobody_writes_before_everybody_has_read(tmp_path: Path) -> None:
    class FasterOther(Processes):
        """While this process waits another writes."""

        def wait(self) -> None:
            if not (tmp_path / "shards").exists():
                shards(tmp_path).write([result(5)])

    assert Shards(tmp_path, IDENTITY, resume=False, processes=FasterOther(0, 2)).done == {}
    assert shards(tmp_path, resume=True).done == {5: record(5)}


# torn lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [b'{"image_id": 99, "record": {"iou": [1', b"\0" * 40, b"[" * 100_000, b"[]"])
def test_a_torn_last_line_is_left_out_with_a_warning(tmp_path: Path, rest: bytes) -> None:
    measure(tmp_path, [1, 2], count=1)
    tear(written(tmp_path)[0], rest)
    with pytest.warns(UserWarning, match=r"shards: 1 torn lines left out, their images are measured again"):
        assert shards(tmp_path, resume=True).done == {1: record(1), 2: record(2)}


def test_torn_lines_of_all_files_are_counted(tmp_path: Path) -> None:
    measure(tmp_path, [1, 2, 3], count=3)
    for path in written(tmp_path)[1:]:
        tear(path)
    with pytest.warns(UserWarning, match="2 torn lines left out"):
        shards(tmp_path, resume=True)


def test_of_torn_lines_only_the_first_process_warns(tmp_path: Path) -> None:
    measure(tmp_path, [1], count=1)
    tear(written(tmp_path)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shards(tmp_path, resume=True, rank=1, count=2).done == {1: record(1)}


def test_whole_lines_are_taken_up_without_a_word(tmp_path: Path) -> None:
    measure(tmp_path, [1, 2], count=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shards(tmp_path, resume=True).joined([1, 2])


def test_the_image_of_a_torn_line_is_measured_again(tmp_path: Path) -> None:
    measure(tmp_path, [1, 2], count=1)
    path = written(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="1 torn lines"):
        measure(tmp_path, [1, 2, 3], count=1, resume=True)
    with pytest.warns(UserWarning, match="1 torn lines"):
        assert shards(tmp_path, resume=True).joined([1, 2, 3]) == [record(1), record(2), record(3)]


def test_a_process_killed_in_its_first_line_has_left_nothing(tmp_path: Path) -> None:
    measure(tmp_path, [1], count=1)
    (tmp_path / "shards" / "000000-1.jsonl").write_text('{"run": {"mod')
    with pytest.warns(UserWarning, match="1 torn lines"):
        assert shards(tmp_path, resume=True).done == {1: record(1)}


# a full disk ---------------------------------------------------------------------------------------------------------


@contextmanager
def nearly_full(path: Path, mode: str = "r") -> Iterator[SimpleNamespace]:
    """Opens `path` on a disk that takes half of what is written and no more."""
    with open(path, mode) as file:

        def write(text: str) -> None:
            file.write(text[: len(text) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        yield SimpleNamespace(write=write)


def filled_after_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write until the disk is full, which is in the third record."""

    def results() -> Iterator[tuple[int, Any]]:
        yield result(1)
        yield result(2)
        monkeypatch.setattr(Path, "open", nearly_full)
        yield result(3)

    try:
        shards(tmp_path).write(results())
    finally:
        monkeypatch.undo()


def test_a_full_disk_gives_one_line_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    with refused(
        ValueError,
        match=r"output .*jsonl: cannot be written \(No space left on device\); what was measured is kept: make room "
        "and go on with --resume",
    ):
        filled_after_two(tmp_path, monkeypatch)


def test_a_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        filled_after_two(tmp_path, monkeypatch)
    with pytest.warns(UserWarning, match="1 torn lines"):
        measure(tmp_path, [1, 2, 3], count=2, resume=True)
    with pytest.warns(UserWarning, match="1 torn lines"):
        assert shards(tmp_path, resume=True).joined([1, 2, 3]) == [record(1), record(2), record(3)]


def test_a_directory_that_cannot_be_made_gives_one_line(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("")
    with refused(ValueError, match=r"shards: cannot be written \(.+\)"):
        shards(tmp_path / "file" / "run")


def test_a_directory_that_one_process_does_not_see_is_refused(tmp_path: Path, refused: Refused) -> None:
    with refused(ValueError, match="shards is not seen by all processes; name one on a shared disk"):
        shards(tmp_path, rank=1, count=2)


def test_what_is_wrong_with_an_image_is_said_with_the_way_to_go_on(tmp_path: Path, refused: Refused) -> None:
    def results() -> Iterator[tuple[int, Any]]:
        yield result(1)
        raise ValueError("photograph is torn")

    with refused(ValueError, match="photograph is torn; what was measured before is kept: mend it and go on with"):
        shards(tmp_path).write(results())
    assert shards(tmp_path, resume=True).done == {1: record(1)}


def test_a_run_that_measured_nothing_is_no_obstacle_to_another(tmp_path: Path) -> None:
    shards(tmp_path).write([])
    assert shards(tmp_path).done == {}


def test_an_error_of_the_measurement_is_not_taken_for_one_of_the_disk(tmp_path: Path) -> None:
    def results() -> Iterator[tuple[int, Any]]:
        yield result(1)
        raise OSError("photograph cannot be read")

    with pytest.raises(OSError, match="photograph cannot be read"):
        shards(tmp_path).write(results())


def test_every_line_is_whole_json(tmp_path: Path) -> None:
    shards(tmp_path).write([(1, {"name": "two\nlines\u2028or three"}), result(2)])
    (path,) = written(tmp_path)
    first, *others = [json.loads(line) for line in path.read_text().splitlines()]
    assert first == {"run": json.loads(json.dumps(IDENTITY))}
    assert [line["image_id"] for line in others] == [1, 2]
