"""What ASAM and its rivals are tuned on, and nothing else of a profile: `generate_pictures.py PROFILE BATCH`.

What is made is not made again; a batch that was broken off is.
"""

import sys

from samtune.study.execute import executor
from samtune.study.generated import adversarial_cells
from samtune.study.profile import load_profile
from samtune.study.runner import run_cells

profile = load_profile(sys.argv[1])
generation = profile.generation.model_copy(update={"batch": int(sys.argv[2])})
profile = profile.model_copy(update={"generation": generation})
run_cells(adversarial_cells(profile).values(), profile.name, executor(profile))
