"""Measure point and box mIoU on LVIS or COCO instances.

$ python eval/run_lvis.py --annotations lvis_v1_val.json --images coco --output runs/lvis \
      --model blvit_b_t --checkpoint blvit_b_t.safetensors
"""

from sam_blvit.cli import run
from sam_blvit.evaluate.masks import evaluate_lvis

if __name__ == "__main__":
    run(evaluate_lvis)
