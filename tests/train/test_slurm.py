"""tools/slurm/finetune.sbatch on a fake cluster: srun and scontrol on PATH, and a trainer with a given exit code.

What is tested is what the batch script does; that Slurm does as its manual says is not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sam_blvit.train.run.interrupt import REQUEUE

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "slurm" / "finetune.sbatch"
JOB, TASKS, TASKS_A_NODE = "24680", 4, 2
SRUN = """
    #!{python}
    import os, signal, subprocess, sys
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "children inherit that a signal is ignored"
    open("srun.txt", "w").write(str(os.getpid()))
    words = sys.argv[1:]
    while words[0].startswith("--"):
        words.pop(0)
    per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = []
    for number in (signal.SIGTERM, signal.SIGUSR1):  # as srun does, to its tasks
        signal.signal(number, lambda number, _: [task.send_signal(number) for task in tasks])
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        of_task = {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % per_node)}}
        tasks.append(subprocess.Popen(words, env={{**os.environ, **of_task}}))
    codes = [task.wait() for task in tasks]
    sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """
    #!{python}
    import os, sys
    with open("scontrol.txt", "a") as file:
        print(*sys.argv[1:], file=file)
    if sys.argv[1:3] == ["show", "hostnames"]:
        assert sys.argv[3] == os.environ["SLURM_JOB_NODELIST"]
        print("node7", "node8", sep="\\n")
"""
TRAINER = """
    import json, os, pathlib, signal, sys
    wanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    told = {"args": sys.argv[1:], **{name: os.environ[name] for name in wanted}}
    rank = os.environ["RANK"]
    if os.environ["ENDS"] == "when asked":
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    pathlib.Path(f"task_{rank}.json").write_text(json.dumps(told))
    if os.environ["ENDS"] == "when asked":
        while True:
            signal.pause()
    sys.exit(int(os.environ["ENDS"].split()[int(rank)]))
"""


class Cluster:
    """A directory like a checkout, with Slurm's commands on PATH."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir()
        (root / "tools").mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            path = root / "bin" / name
            path.write_text(textwrap.dedent(text).strip().format(python=sys.executable) + "\n")
            path.chmod(0o755)
        (root / "bin" / "python").symlink_to(sys.executable)
        (root / "tools" / "finetune.py").write_text(textwrap.dedent(TRAINER))

    def submit(self, *args: str, ends: str) -> subprocess.Popen[str]:
        """Start the batch script; `ends`: each task's exit code, or "when asked"."""
        environment = {
            **os.environ,
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_NTASKS": str(TASKS),
            "SLURM_NTASKS_PER_NODE": str(TASKS_A_NODE),
            "ENDS": ends,
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), *args], cwd=self.root, env=environment, stderr=subprocess.PIPE, text=True
        )

    def run(self, *args: str, ends: str) -> int:
        """The exit code of the batch script."""
        job = self.submit(*args, ends=ends)
        job.communicate(timeout=30)
        return job.returncode

    def tasks(self) -> list[dict[str, object]]:
        """What each task found, by rank."""
        return [json.loads((self.root / f"task_{rank}.json").read_text()) for rank in range(TASKS)]

    def requeued(self) -> list[str]:
        """What was queued again."""
        lines = (self.root / "scontrol.txt").read_text().splitlines()
        return [line.removeprefix("requeue ") for line in lines if line.startswith("requeue ")]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def all_ending(code: int) -> str:
    return " ".join([str(code)] * TASKS)


def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until `is_so`."""
    for _ in range(300):
        if is_so():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_it_is_a_shell_script() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_slurm_reads_how_to_warn_and_to_start_again() -> None:
    lines = SCRIPT.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    read = lines[:first_command]  # sbatch stops reading there
    assert {"#SBATCH --signal=USR1@600", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(read)


def test_each_task_knows_its_place_among_all(cluster: Cluster) -> None:
    assert cluster.run("configs/sam_b_t.yaml", ends=all_ending(0)) == 0
    tasks = cluster.tasks()
    assert [task["RANK"] for task in tasks] == ["0", "1", "2", "3"]
    assert [task["LOCAL_RANK"] for task in tasks] == ["0", "1", "0", "1"]
    assert {task["WORLD_SIZE"] for task in tasks} == {"4"}


def test_all_tasks_meet_at_the_first_host_on_the_job_s_own_port(cluster: Cluster) -> None:
    cluster.run(ends=all_ending(0))
    assert {task["MASTER_ADDR"] for task in cluster.tasks()} == {"node7"}
    (port,) = {task["MASTER_PORT"] for task in cluster.tasks()}
    assert int(str(port)) == 20000 + int(JOB) % 12000


def test_settings_reach_the_trainer_as_they_were_typed(cluster: Cluster) -> None:
    args = ["configs/sam_b_t.yaml", "--data", "a directory/with 'quotes' and $HOME", "--keep-ratios", "0.25", "", "*"]
    cluster.run(*args, ends=all_ending(0))
    assert [task["args"] for task in cluster.tasks()] == [args] * TASKS


def test_a_run_that_saved_to_go_on_is_queued_again(cluster: Cluster) -> None:
    assert cluster.run(ends=all_ending(REQUEUE)) == REQUEUE
    assert cluster.requeued() == [JOB]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 137])
def test_a_run_that_ended_in_any_other_way_is_not(cluster: Cluster, code: int) -> None:
    assert cluster.run(ends=all_ending(code)) == code
    assert cluster.requeued() == []


def test_a_task_that_was_killed_while_the_others_saved_is_no_reason_to_start_again(cluster: Cluster) -> None:
    assert cluster.run(ends=f"{REQUEUE} 137 {REQUEUE} {REQUEUE}") == 137
    assert cluster.requeued() == []


def test_the_batch_shell_outlives_the_signals_that_its_tasks_are_to_hear(cluster: Cluster) -> None:
    job = cluster.submit(ends="when asked")
    eventually(lambda: all((cluster.root / f"task_{rank}.json").exists() for rank in range(TASKS)))
    for number in (signal.SIGTERM, signal.SIGUSR1):
        job.send_signal(number)
    time.sleep(0.2)  # for it to end, if it is to
    assert job.poll() is None
    os.kill(int((cluster.root / "srun.txt").read_text()), signal.SIGUSR1)
    job.communicate(timeout=30)
    assert job.returncode == REQUEUE
    assert cluster.requeued() == [JOB]


def test_away_from_a_checkout_nothing_starts(cluster: Cluster) -> None:
    (cluster.root / "tools" / "finetune.py").unlink()
    job = cluster.submit(ends=all_ending(0))
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 2
    assert errors == f"error: {cluster.root} holds no tools/finetune.py; submit from the root of the checkout\n"
    assert not (cluster.root / "scontrol.txt").exists()
