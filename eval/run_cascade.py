"""Choose thresholds of a Little-Big cascade from saved scores of its models, and test them on other samples.

$ python eval/run_cascade.py --scores little.npz big.npz --labels labels.csv --output runs/cascade
$ python eval/run_cascade.py --scores tiny.npz little.npz big.npz --labels labels.csv --fit-share 0.5 --seed 0 ...
"""

from sam_blvit.cascade.command import run_saved
from sam_blvit.cli import run

if __name__ == "__main__":
    run(run_saved)
