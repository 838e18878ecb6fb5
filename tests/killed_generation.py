"""Run cells five times and kill each run at a random moment, then once to the end: `killed_generation.py FOLDER MODEL`.

Every child is forked from this process, so that torch is imported once.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from samtune.data.generated import FINISHED
from test_study_generated import cells, quiet_run

torch.set_num_threads(1)
folder, model = Path(sys.argv[1]), sys.argv[2]
random.seed(int(sys.argv[3]))
killed, kept, times = 0, 0, {}


def finished() -> list[Path]:
    """The files, written last, of pictures that are finished."""
    return [path for path in folder.glob("generated/*/*.json") if path.name != FINISHED]


for number in range(5):
    child = os.fork()
    if child == 0:
        quiet_run(cells(model), folder)
        os._exit(0)
    time.sleep(random.uniform(0.3, 1.2))
    # A slow machine too shall have a finished picture at a kill: it is waited for, as long as the child runs.
    while number == 2 and not finished() and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        killed, kept = killed + 1, max(kept, len(finished()))
    for path in finished():
        assert times.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, f"made again: {path}"
quiet_run(cells(model), folder)
for path, made in times.items():
    assert path.stat().st_mtime_ns == made, f"made again: {path}"
print(killed, kept)
