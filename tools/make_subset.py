"""`sam-blvit subset`: draw a part of SA-1B, by default the paper's 2 %.

Writes train.tsv and validation.tsv, lists of photographs.

$ python tools/make_subset.py --data ROOT --output runs/subset
$ python tools/finetune.py --data ROOT --manifest runs/subset/train.tsv --val-manifest runs/subset/validation.tsv ...
"""

from sam_blvit.cli import run
from sam_blvit.commands.scripts import make_subset

if __name__ == "__main__":
    run(make_subset)
