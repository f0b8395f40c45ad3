"""`sam-blvit evaluate-lvis`: measure point and box mIoU on LVIS or COCO, or the LVIS AP of masks prompted by boxes.

$ python eval/run_lvis.py --annotations lvis_v1_val.json --images coco --output runs/lvis \\
      --model blvit_b_t --checkpoint blvit_b_t.safetensors
$ torchrun --nproc-per-node 8 eval/run_lvis.py ... --seeds 0,1,2
$ python eval/run_lvis.py ... --keep-ratios 0,0.125,0.25,0.5,0.75,1
$ python eval/run_lvis.py ... --perturb jpeg30,shift8,dark
$ python eval/run_lvis.py ... --detections lvis_instances_results.json
"""

from sam_blvit.cli import run
from sam_blvit.commands.scripts import evaluate_lvis

if __name__ == "__main__":
    run(evaluate_lvis)
