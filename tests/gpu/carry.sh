#!/usr/bin/env bash
# Makes .carry/: the data sets named, an archive each, for a machine that has neither network nor the data sets.
# usage: tests/gpu/carry.sh SET ...   there: tar -I 'zstd --long=27' -xf .carry/SET.tar.zst -C DIR; SAMTUNE_DATA=DIR
# What worked on a lent card: a first call that starts run.sh under setsid; then a call of some seconds for every 60 MB of
# sets; then one long call that waits and collects, and at once (the machine goes back after 30 idle seconds) the next.
# The work tree travels too and has a limit; results/ stays here for the time being by
#   git sparse-checkout set --no-cone '/*' '!/results'      (records travel as one more archive)
# Wheels beside those of offline-gpu-wheels.sh: entrypoints monai segmentation-models-pytorch pycocotools pysodmetrics pooch
#   latex2mathml pydantic pydantic-core annotated-types typing-inspection nbconvert mistune bleach beautifulsoup4 soupsieve
#   defusedxml jupyterlab-pygments pandocfilters tinycss2 webencodings. DRIVE's compressed TIFF files want imagecodecs, or to
#   be written again without compression.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ $# -gt 0 ] || { sed -n 2,13p "${BASH_SOURCE[0]}"; exit 1; }
mkdir -p .carry
for name in "$@"; do
    tar -C "${SAMTUNE_DATA:-data}" --exclude='*.db' -cf - "$name" | zstd -q -T0 -10 --long=27 -f -o ".carry/$name.tar.zst"
    du -h ".carry/$name.tar.zst"
done
