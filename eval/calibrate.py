"""`sam-blvit calibrate`: find the protocol that reproduces the paper's six numbers of the original SAMs, and write it.

$ torchrun --nproc-per-node 8 eval/calibrate.py --vit-b sam_vit_b_01ec64.pth --vit-h sam_vit_h_4b8939.pth \\
      --annotations lvis_v1_val.json --images coco --output runs/calibration
$ python eval/run_lvis.py ... --protocol runs/calibration/blvit-cal.json
"""

from sam_blvit.cli import run
from sam_blvit.commands.scripts import calibrate

if __name__ == "__main__":
    run(calibrate)
