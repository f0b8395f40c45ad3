"""Does routing pay? A small Table 2 and Table 3, each row trained, measured and timed.

$ python -m studies.evidence --data DATA --output runs/evidence_reduced               # minutes on 2 CPU cores
$ python -m studies.evidence --data DATA --output runs/cpu --size cpu --teacher TEACHER
$ python -m studies.evidence --data DATA --output runs/gpu --size gpu --parallel 4

Run it in the root of the repository. It runs the project's own commands and writes their results to evidence.md and
evidence.json. Started again, it resumes where it stopped.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from sam_blvit.cli import run
from sam_blvit.system.files import write_atomically, write_json
from studies.evidence.rows import ROWS
from studies.evidence.running import run_chains
from studies.evidence.study import EvidenceConfig, Study
from studies.evidence.tables import page, results


def evidence(config: EvidenceConfig) -> None:
    """Run the study and write the tables. ValueError names a row that failed."""
    study = Study(config)
    for error in run_chains([study.preparations()]):
        raise error
    rows, seeds = config.rows or study.size.rows, config.seeds or study.size.seeds
    failed = run_chains([study.chain(row, seed) for seed in seeds for row in rows], parallel=config.parallel)
    if any(study.timed(name) for name in ROWS):
        failed += run_chains([[study.benchmark()]])
    found = results(study)
    commands = [shlex.join(task.words) for task in study.finished()]
    write_json(config.output / "evidence.json", {"size": config.size, "rows": [*found.values()], "commands": commands})
    tables = config.output / "evidence.md"
    write_atomically(tables, lambda to: Path(to).write_text(page(study, found)))
    print(tables)
    if failed:
        raise ValueError(f"{failed[0]}" + (f"; {len(failed) - 1} more failed" if len(failed) > 1 else ""))


if __name__ == "__main__":
    run(evidence)
