"""What ASAM and its rivals are tuned on, and nothing else of a profile: `generate_pictures.py PROFILE BATCH`.

What is made is not made again; a batch that was broken off is.
"""

import sys

from samtune.common.paths import results_root
from samtune.study.execute import executor
from samtune.study.generated import adversarial_cells
from samtune.study.profile import load_profile
from samtune.study.runner import needed_cells, run_cell

profile = load_profile(sys.argv[1])
generation = profile.generation.model_copy(update={"batch": int(sys.argv[2])})
profile = profile.model_copy(update={"generation": generation})
folder, run = results_root(profile.name), executor(profile)
for cell in adversarial_cells(profile).values():
    for one in (*needed_cells(cell, folder), cell):  # also where a record is here and its pictures are not
        print(one.describe(), flush=True)
        run_cell(one, folder, run)
