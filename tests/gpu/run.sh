#!/usr/bin/env bash
# What two cores are too slow for, in order of worth, on a machine with a graphics card and nothing to download:
#   tests      pytest of tests/gpu: methods on the card against the CPU, resuming across devices, messages
#   bench      pictures a second and memory of every method: table `speed` of the profile gpu
#   rehearsal  every notebook of the profile gpu on 8 pictures, with a ViT-B of random weights
#   diffusion  the nano diffusion pipeline's stages, see train_diffusion.sh
#   queue      all cells of the profile cpu that have no record, many processes sharing the card (CUDA's MPS)
# usage: tests/gpu/run.sh OUT [PART ...]        (all parts without one)
# What is done is kept as records, and is not done again; everything new is packed into OUT every minute
# (tests/gpu/pack.py) and brought back with tests/gpu/bring_back.py OUT. Settings, from the environment:
#   DEVICE (cuda)  PROCESSES of the queue (30)  MINUTES of the bench (2)  PYTHON (python3)  SAMTUNE_DATA
#   REHEARSED, notebooks of the rehearsal (all)  QUEUE, profile of the queue (cpu)  EVERY, seconds between packs (60)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?usage: tests/gpu/run.sh OUT [PART ...]}; shift
parts=("$@"); [ $# -gt 0 ] || parts=(tests bench rehearsal diffusion queue)  # the queue slows all else down
device=${DEVICE:-cuda}; python=${PYTHON:-python3}
mkdir -p "$out"; [ -e "$out/started" ] || touch "$out/started"
export PYTHONPATH="$PWD/lib${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

say() { echo "$(date +%T) $*" | tee -a "$out/log.txt"; }
pack() { $python tests/gpu/pack.py "$out" || say "packing failed"; }
( while sleep "${EVERY:-60}"; do pack; done ) & packer=$!
trap 'kill $packer 2>/dev/null; pack' EXIT

part_tests() { SAMTUNE_TEST_DEVICE=$device $python -m pytest -q -m gpu tests/gpu; }
part_bench() { $python -m samtune.commands.cli bench --profile gpu --minutes "${MINUTES:-2}" --device "$device"; }
part_rehearsal() { $python tests/gpu/rehearse.py --device "$device" ${REHEARSED:-}; }
part_queue() {
    [ "$device" = cpu ] || command -v nvidia-cuda-mps-control >/dev/null && nvidia-cuda-mps-control -d 2>/dev/null
    $python tests/gpu/queue_profile.py "${QUEUE:-cpu}" "$device" > "$out/queue.yaml" || return
    local pids=() status=0
    for ((i = 0; i < ${PROCESSES:-30}; i++)); do
        OMP_NUM_THREADS=1 $python -m samtune.commands.cli results --profile "$out/queue.yaml" --cells-only \
            > "$out/queue-$i.txt" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
    cat "$out"/queue-*.txt > "$out/queue.txt"; rm -f "$out"/queue-*.txt
    return $status
}

part_diffusion() { DEVICE=$device PYTHON=$python tests/gpu/train_diffusion.sh "$out"; }

failed=()
for part in "${parts[@]}"; do
    say "== $part"
    "part_$part" 2>&1 | tee -a "$out/$part.txt" || failed+=("$part")
done
say "failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
