"""`sam-blvit evaluate-coco`: measure the COCO AP of masks prompted by boxes, or point and box mIoU.

The boxes are a detector's or the annotated ones.

$ python eval/run_coco.py --annotations instances_val2017.json --images coco --output runs/coco \\
      --detections coco_instances_results.json --model blvit_b_t --checkpoint blvit_b_t.safetensors
$ python eval/run_coco.py ... --boxes gt
"""

from sam_blvit.cli import run
from sam_blvit.commands.scripts import evaluate_coco

if __name__ == "__main__":
    run(evaluate_coco)
