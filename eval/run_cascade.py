"""`sam-blvit cascade`: choose thresholds of a Little-Big cascade on some samples and test them on others.

The input is models, or their saved scores.

$ python eval/run_cascade.py --models timm:mobilenetv3_small_100 timm:resnet50 --images imagenet/val --output runs/a
$ python eval/run_cascade.py --models lite:lite0 lite:lite2 --images photographs --labels labels.csv \\
    --perturb jpeg10 blur3 dark shift32 --output runs/a
$ python eval/run_cascade.py --scores little.npz big.npz --labels labels.csv --output runs/a
$ python eval/run_cascade.py --scores tiny.npz little.npz big.npz --labels labels.csv --fit-share 0.5 --seed 0 ...
"""

from sam_blvit.cli import run
from sam_blvit.commands.scripts import run_cascade

if __name__ == "__main__":
    run(run_cascade)
