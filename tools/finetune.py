"""`sam-blvit finetune`: distil a SAM into a big.LITTLE one, or adapt or train one, on SA-1B or your own photographs.

$ python tools/finetune.py configs/finetune_tiny.yaml --data ROOT \\
    --teacher runs/teacher_tiny/last.safetensors --output runs/tiny
"""

from sam_blvit.cli import run
from sam_blvit.commands.scripts import finetune

if __name__ == "__main__":
    run(finetune)
