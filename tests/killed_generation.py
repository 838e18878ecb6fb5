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

from test_study_generated import cells, quiet_run

torch.set_num_threads(1)
folder, model = Path(sys.argv[1]), sys.argv[2]
random.seed(int(sys.argv[3]))
killed, times = 0, {}
for _ in range(5):
    child = os.fork()
    if child == 0:
        quiet_run(cells(model), folder)
        os._exit(0)
    time.sleep(random.uniform(0.3, 1.2))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    for path in folder.glob("generated/*/*.json"):
        assert times.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, f"made again: {path}"
before = len(times)
quiet_run(cells(model), folder)
for path, made in times.items():
    assert path.stat().st_mtime_ns == made, f"made again: {path}"
print(killed, before)
