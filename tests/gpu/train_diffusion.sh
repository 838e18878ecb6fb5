#!/usr/bin/env bash
# Train the nano diffusion pipeline on a graphics card: autoencoder, its decoder alone, U-Net, ControlNet, each going on where
# it stopped; then, in the time that is left, make the adversarial pictures of a profile by it (stage pictures), picture by picture.
# usage: tests/gpu/train_diffusion.sh OUT [STAGE ...]        (all five without one)
# Checkpoints stay in WORK; the pipeline so far (fp16) and the learning curves are packed into OUT every minute, in parts of
# 15 MB: cat OUT/pipeline.tar.gz.* | tar -xz. So are the pictures, without their latents (tests/gpu/pack.py; back by
# tests/gpu/bring_back.py OUT). The file of training pictures is made first where the data sets are:
#   python -m samtune.nano.diffusion --stage autoencoder --steps 0 --out checkpoints/nano_diffusion
# Stage pictures needs the data sets themselves (SAMTUNE_DATA). The pipeline becomes the checkout's own, which the profile calls
# nano, where it has none or SHIP=1: the cells are then those of the profile once these weights are shipped. To train the
# ControlNet alone, put the shipped pipeline into WORK/pipeline and name the stages controlnet and pictures.
# Settings, from the environment: DEVICE (cuda)  PYTHON (python3)  WORK (checkpoints/nano_diffusion)  PICTURES (WORK/pictures.npz)
#   STEPS and BATCHES, of the four stages  EVERY, steps between checkpoints (500)  PROFILE of the pictures (cpu)
#   AT_ONCE, pictures in a batch (25)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?usage: tests/gpu/train_diffusion.sh OUT [STAGE ...]}; shift
stages=("$@"); [ $# -gt 0 ] || stages=(autoencoder decoder unet controlnet pictures)
work=${WORK:-checkpoints/nano_diffusion}; device=${DEVICE:-cuda}; python=${PYTHON:-python3}; pictures=${PICTURES:-$work/pictures.npz}
# Measured on an H200 beside 24 other trainings: 59 ms a step of 64 (autoencoder), 280 and 250 ms a step of 256 (U-Net,
# ControlNet); so trained, 1,400, 600 and 300 steps were too few for the ControlNet. Alone, these should take some 8 minutes.
read -r -a steps <<< "${STEPS:-3000 1000 3000 2500}"
read -r -a batches <<< "${BATCHES:-64 64 64 64}"
declare -A place=([autoencoder]=0 [decoder]=1 [unet]=2 [controlnet]=3)
mkdir -p "$out" "$work"; [ -e "$out/started" ] || touch "$out/started"
export PYTHONPATH="$PWD/lib${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

copy() {
    local parts; parts=$(cd "$work" && ls -d *.json pipeline 2>/dev/null)
    [ -z "$parts" ] || tar -C "$work" -cz $parts | split -b 15M - "$out/pipeline.tar.gz."
    $python tests/gpu/pack.py "$out"
}
( while sleep 60; do copy; done ) > /dev/null 2>&1 & copier=$!
trap 'kill $copier 2>/dev/null; copy' EXIT

generate() {
    local nano=lib/samtune/assets/nano_diffusion
    [ -z "${SHIP:-}" ] || [ ! -d "$work/pipeline/controlnet" ] || rm -rf $nano
    [ -e $nano ] || [ ! -d "$work/pipeline/controlnet" ] || cp -r "$work/pipeline" $nano
    $python tests/gpu/queue_profile.py "${PROFILE:-cpu}" "$device" > "$work/pictures.yaml" &&
        $python tests/gpu/generate_pictures.py "$work/pictures.yaml" "${AT_ONCE:-25}"
}

for stage in "${stages[@]}"; do
    number=${place[$stage]:-}
    if [ "$stage" = pictures ]; then
        generate 2>&1 | tee -a "$out/training.txt" || exit 1
        continue
    fi
    $python -m samtune.nano.diffusion --stage "$stage" --steps "${steps[$number]}" --out "$work" \
        --pictures "$pictures" --device "$device" --batch-size "${batches[$number]}" \
        --checkpoint-every "${EVERY:-500}" 2>&1 | tee -a "$out/training.txt" || exit 1
done
