"""`sam-blvit report`: join evaluation runs into one table on screen and one self-contained page, report.html.

$ python eval/report.py runs/lvis runs/coco --output runs/report
"""

from sam_blvit.cli import run
from sam_blvit.commands.scripts import report

if __name__ == "__main__":
    run(report)
