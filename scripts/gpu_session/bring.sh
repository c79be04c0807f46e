#!/usr/bin/env bash
# Puts into .carry/ what a GPU machine without a network needs: CIFAR-10 as mosaics, and wheels for its Python 3.12.
#   bash scripts/gpu_session/bring.sh IMAGES       (IMAGES: train/CLASS/*.png and test/CLASS/*.png)
set -euo pipefail
[ $# = 1 ] || { echo "error: usage: bring.sh IMAGES" >&2; exit 2; }
images="$(realpath "$1")"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python="${PYTHON:-python3}"
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
platforms=()
for version in 2014 _2_17 _2_27 _2_28; do platforms+=(--platform "manylinux${version}_x86_64"); done
# Of those that are there already nothing is unpacked. torch, torchvision, numpy and pillow are not among them: large.
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none "${platforms[@]}" --dest .carry/wheels \
    jsonargparse PyYAML psutil nvidia-ml-py rich markdown-it-py mdurl pygments cloudpickle safetensors \
    pytest pytest-timeout pytest-xdist execnet pluggy iniconfig packaging
"$python" scripts/gpu_session/mosaics.py pack "$images" .carry
du -sh .carry/*
