#!/usr/bin/env bash
# Makes .carry/: what tests/gpu/run.sh needs on a machine that has neither network nor the data sets: the sets named, as
# one archive. usage: tests/gpu/carry.sh SET ...   there: tar -I zstd -xf .carry/data.tar.zst -C DIR; SAMTUNE_DATA=DIR
# A transfer has a limit: what travels besides (the work tree) can be made lighter for the time being by
#   git sparse-checkout set --no-cone '/*' '!results/cpu/figures' '!results/cpu/notebooks' '!results/cpu/checkpoints'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ $# -gt 0 ] || { sed -n 2,6p "${BASH_SOURCE[0]}"; exit 1; }
mkdir -p .carry
tar -C "${SAMTUNE_DATA:-data}" -cf - "$@" | zstd -q -T0 -10 -f -o .carry/data.tar.zst
du -h .carry/data.tar.zst
