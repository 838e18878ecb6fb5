#!/usr/bin/env bash
# Train the nano diffusion pipeline on a graphics card: autoencoder, U-Net, ControlNet, each going on where it stopped.
# usage: tests/gpu/train_diffusion.sh OUT [STAGE ...]        (all three without one)
# Checkpoints stay in checkpoints/nano_diffusion; the pipeline so far (fp16) and the learning curves are packed into OUT
# every minute, in parts of 15 MB: cat OUT/pipeline.tar.gz.* | tar -xz. The file of pictures is made first where the data sets are:
#   python -m samtune.nano.diffusion --stage autoencoder --steps 0 --out checkpoints/nano_diffusion
# Settings, from the environment: DEVICE (cuda)  PYTHON (python3)  PICTURES (checkpoints/nano_diffusion/pictures.npz)
#   STEPS and BATCHES, of the three stages  EVERY, steps between checkpoints (500)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?usage: tests/gpu/train_diffusion.sh OUT [STAGE ...]}; shift
stages=("$@"); [ $# -gt 0 ] || stages=(autoencoder unet controlnet)
work=checkpoints/nano_diffusion; pictures=${PICTURES:-$work/pictures.npz}
read -r -a steps <<< "${STEPS:-8000 10000 5000}"
read -r -a batches <<< "${BATCHES:-64 128 128}"
declare -A place=([autoencoder]=0 [unet]=1 [controlnet]=2)
mkdir -p "$out" "$work"
export PYTHONPATH="$PWD/lib${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

copy() { tar -C "$work" -cz $(cd "$work" && ls -d *.json pipeline 2>/dev/null) | split -b 15M - "$out/pipeline.tar.gz."; }
( while sleep 60; do copy; done ) > /dev/null 2>&1 & copier=$!
trap 'kill $copier 2>/dev/null; copy' EXIT

for stage in "${stages[@]}"; do
    number=${place[$stage]}
    ${PYTHON:-python3} -m samtune.nano.diffusion --stage "$stage" --steps "${steps[$number]}" --out "$work" \
        --pictures "$pictures" --device "${DEVICE:-cuda}" --batch-size "${batches[$number]}" \
        --checkpoint-every "${EVERY:-500}" 2>&1 | tee -a "$out/$stage.txt" || exit 1
done
