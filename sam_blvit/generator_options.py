"""Checks of the options of `SamAutomaticMaskGenerator`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


def checked_options(options: dict[str, Any]) -> list[np.ndarray] | None:
    """Check a generator's `options`.

    Returns:
        `point_grids` as arrays, or None if it is not given.

    Raises:
        ValueError: If an option is invalid.
    """
    for name, least in (("points_per_side", 1), ("points_per_batch", 1), ("crop_n_layers", 0)):
        value = options[name]
        if not (isinstance(value, Integral) and int(value) >= least) and not (
            name == "points_per_side" and value is None
        ):
            raise ValueError(f"{name}={value!r} is not an integer of at least {least}")
    for name in (
        "pred_iou_thresh",
        "stability_score_thresh",
        "box_nms_thresh",
        "crop_nms_thresh",
        "min_mask_region_area",
    ):
        _check_number(name, options[name])
    _check_number("stability_score_offset", options["stability_score_offset"], least=-sys.float_info.max)
    _check_number("crop_overlap_ratio", options["crop_overlap_ratio"], least=0, most=1)
    _check_number("crop_n_points_downscale_factor", options["crop_n_points_downscale_factor"], least=1)
    if options["output_mode"] not in OUTPUT_MODES:
        raise ValueError(f"output_mode={options['output_mode']!r} is not one of {', '.join(OUTPUT_MODES)}")
    side, grids, last = options["points_per_side"], options["point_grids"], options["crop_n_layers"]
    if (side is None) == (grids is None):
        raise ValueError("pass exactly one of points_per_side and point_grids, and None for the other")
    if grids is not None:
        return _checked_grids(grids, layers=1 + last)
    if side < options["crop_n_points_downscale_factor"] ** last:
        raise ValueError(
            f"points_per_side={side} leaves no points for crops of layer {last}; use more points or fewer layers"
        )
    return None


def _check_number(name: str, value: Any, *, least: float = -math.inf, most: float = math.inf) -> None:
    if not (isinstance(value, Real) and least <= float(value) <= most):  # False for NaN
        raise ValueError(
            f"{name}={value!r} is not a number" + ("" if least == -math.inf else f" from {least:g} to {most:g}")
        )


def _checked_grids(grids: Sequence[ArrayLike], *, layers: int) -> list[np.ndarray]:
    """The points (n, 2) of each layer, as fractions of a crop's width and height."""
    try:
        arrays = [np.asarray(grid, dtype=np.float64) for grid in grids]
    except (TypeError, ValueError) as error:
        raise ValueError("point_grids is not a list of numeric arrays (n, 2), one for each layer") from error
    if len(arrays) < layers:
        raise ValueError(
            f"point_grids has {len(arrays)} grids for {layers} layers: the whole image and crop_n_layers of crops"
        )
    for grid in arrays:
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
            raise ValueError(f"point_grids has a grid of shape {grid.shape}: (n, 2) is expected, X, Y of each point")
        if not ((grid >= 0) & (grid <= 1)).all():
            raise ValueError("point_grids has points outside 0 to 1; pass fractions of width and height, not pixels")
    return arrays
