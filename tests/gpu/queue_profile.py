"""A profile on another device, printed as YAML, with the same cells: `queue_profile.py PROFILE DEVICE`."""

import sys

import yaml

from samtune.study.profile import load_profile

print(yaml.safe_dump(load_profile(sys.argv[1]).model_dump(mode="json") | {"device": sys.argv[2].partition(":")[0]}))
