"""`sam-blvit cache-teacher`: compute a teacher's image embeddings once, for tools/finetune.py --teacher-cache.

Started again, it resumes where it stopped.

$ python tools/cache_teacher.py --data ROOT --teacher sam_vit_h_4b8939.pth --teacher-model vit_h \\
    --model blvit_h_b --output teacher_cache
$ torchrun --nproc-per-node 8 tools/cache_teacher.py ...    # the processes share the work
"""

from sam_blvit.cli import run
from sam_blvit.commands.scripts import cache_teacher

if __name__ == "__main__":
    run(cache_teacher)
