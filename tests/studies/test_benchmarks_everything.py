"""The benchmark of everything mode compares the same masks, and its stages add up; how fast it is, it does not say."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import pytest
import segment_anything
import skimage.data

from sam_blvit import SamAutomaticMaskGenerator, sam_model_registry
from sam_blvit.model.sam import Sam
from studies import everything_speed

pytestmark = pytest.mark.filterwarnings("ignore:.*positions interpolated:UserWarning")


@pytest.fixture(scope="module")
def sam() -> Sam:
    return sam_model_registry["blvit_s_t"](image_size=256)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.coffee()[::4, ::4])


def test_it_prints_both_and_their_stages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--image-size", "128", "--points-per-side", "3", "--turns", "1"])
    monkeypatch.setattr(everything_speed, "tune_allocator", lambda: True)
    everything_speed.main()
    printed = capsys.readouterr().out
    for words in ("1 threads", "allocator tuned", "masks in both", "| encoder |", "| together |", "ratio: median"):
        assert words in printed


@pytest.mark.parametrize("kind", [SamAutomaticMaskGenerator, segment_anything.SamAutomaticMaskGenerator])
def test_stages_add_up_to_the_whole(sam: Sam, photograph: np.ndarray, kind: Any) -> None:
    generator = kind(sam, points_per_side=3, pred_iou_thresh=0.1, stability_score_thresh=0.1)
    with everything_speed.clocked() as spent:
        start = time.perf_counter()
        generator.generate(photograph)
        whole = time.perf_counter() - start
    assert spent.keys() == everything_speed.STAGES.keys()
    assert all(seconds > 0 for seconds in spent.values())
    assert 0.9 * whole < sum(spent.values()) <= whole


def test_half_of_the_masks_pass(sam: Sam, photograph: np.ndarray) -> None:
    thresholds = everything_speed.half_pass(sam, photograph)
    none = {"pred_iou_thresh": 0, "stability_score_thresh": 0}
    whole, half = (
        len(SamAutomaticMaskGenerator(sam, points_per_side=8, box_nms_thresh=1, **limits).generate(photograph))
        for limits in (none, {**none, "pred_iou_thresh": thresholds["pred_iou_thresh"]})
    )
    assert half == pytest.approx(whole / 2, abs=2)


def record(**changed: Any) -> dict[str, Any]:
    mask = np.zeros((20, 20), bool)
    mask[:10] = True
    given = {"segmentation": mask, "predicted_iou": 0.5, "stability_score": 0.5, "point_coords": [[1.0, 2.0]]}
    return {**given, **changed}


def test_how_far_masks_differ_is_said() -> None:
    other = record()["segmentation"]
    other[0, 0] = False
    assert everything_speed.most_different([record()], [record()]) == 0
    assert everything_speed.most_different([record(segmentation=other)], [record()]) == 1 / 200


@pytest.mark.parametrize(
    "changed",
    [
        {"segmentation": np.ones((20, 20), bool)},
        {"predicted_iou": 0.6},
        {"stability_score": 0.4},
        {"point_coords": [[2.0, 1.0]]},
    ],
    ids=str,
)
def test_other_masks_are_refused(refused: Any, changed: dict[str, Any]) -> None:
    with refused(ValueError, "differ"):
        everything_speed.most_different([record(**changed)], [record()])
    with refused(ValueError, "0 masks, and 1 of"):
        everything_speed.most_different([], [record()])
