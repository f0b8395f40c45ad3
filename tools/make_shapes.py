"""Paste shapes onto photographs, for a SAM that starts from nothing: shapes.tar, in SA-1B's layout.

$ python tools/make_shapes.py --data ROOT --exclude ROOT/val_ids.txt --output runs/shapes
$ ln -s ROOT/*.tar runs/shapes/
$ python tools/finetune.py configs/evidence/teacher.yaml --data runs/shapes ...
"""

from sam_blvit.cli import run
from sam_blvit.data.shapes import make_shapes

if __name__ == "__main__":
    run(make_shapes)
