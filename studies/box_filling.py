"""Box mIoU of filling every prompt box: the baseline that a promptable model must beat.

$ python studies/box_filling.py instances.json
"""

import sys
from pathlib import Path

import numpy as np

from sam_blvit.data.instances import read_instances


def box_filling_miou(annotations: Path) -> float:
    """Instance mean in percent over annotations that are no crowd and have a pixel."""
    dataset = read_instances(annotations)
    ious = []
    for instance in (a for a in dataset.instances if not a.crowd):
        image = dataset.records[instance.image_id]
        mask = instance.mask(image.height, image.width)
        x, y, width, height = instance.box
        filled = np.zeros_like(mask)
        filled[round(y) : round(y + height), round(x) : round(x + width)] = True
        if mask.any():
            ious.append((mask & filled).sum() / (mask | filled).sum())
    return 100 * float(np.mean(ious))


if __name__ == "__main__":
    print(f"{box_filling_miou(Path(sys.argv[1])):.1f}")
