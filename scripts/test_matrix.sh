#!/usr/bin/env bash
# Tests the wheel on several versions of Python and on the oldest and the newest torch, one environment after the other:
#   bash scripts/test_matrix.sh [--light SITE_PACKAGES] [PYTHON ...]
# PYTHON: an interpreter or its path; without any, python3.11, python3.12 and python3.13 of PATH. Prints a table, and
# ends with status 1 if a test failed. TORCH="2.11.* 2.14.*" names other versions of torch.
# An environment takes 6 GB while it is tested. --light takes CUDA's libraries, 4 GB of them, from the site-packages of
# an environment that has them (.venv/lib/python3.12/site-packages): enough for tests on a CPU, and for nothing else.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
light="" pythons=() steps=(install plan elastic trainer resume export)
while [ $# -gt 0 ]; do
    case "$1" in
        --light) light="$(cd "$2" && pwd)"; shift 2 ;;
        -*) printf 'error: %s: expected --light SITE_PACKAGES or interpreters\n' "$1" >&2; exit 2 ;;
        *) pythons+=("$1"); shift ;;
    esac
done
[ ${#pythons[@]} -gt 0 ] || pythons=(python3.11 python3.12 python3.13)
for python in "${pythons[@]}"; do
    command -v "$python" >/dev/null || { printf 'error: %s is not there: name interpreters by their paths\n' "$python" >&2; exit 2; }
done
oldest=$(sed -n 's/^torch>=\(.*\)/\1/p' "$root/requirements.txt")
read -r -a torches <<<"${TORCH:-$oldest.* newest}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# One environment in $work/env with torch $2, for the interpreter $1.
install() {
    local site library torch="torch" vision="torchvision" pip=("$work/env/bin/python" -m pip --quiet --disable-pip-version-check)
    [ "$2" = newest ] || torch="torch==$2"
    # A torchvision is made for one torch: that of torch 2.11 is 0.26, of 2.12 is 0.27 ...
    [ "$2" = newest ] || vision="torchvision==0.$(($(cut -d. -f2 <<<"$2") + 15)).*"
    "$1" -m venv "$work/env" || return
    if [ -z "$light" ]; then
        "${pip[@]}" install "$torch" "$vision" "$wheel[train]"
        return
    fi
    grep -v '^#\|^torch' "$root/requirements.txt" >"$work/others.txt"
    "${pip[@]}" install --no-deps "$torch" "$vision" "$wheel" &&
        "${pip[@]}" install -r "$work/others.txt" filelock typing-extensions sympy networkx jinja2 fsspec setuptools &&
        site=$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
        # NVSHMEM's symbols change from version to version: it is the one that this torch asks for.
        "${pip[@]}" install --no-deps "$(sed -n 's/^Requires-Dist: \(nvidia-nvshmem[^;]*[^; ]\).*/\1/p' "$site"/torch-*.dist-info/METADATA)" &&
        for library in "$light"/nvidia/*; do
            [ -e "$site/nvidia/${library##*/}" ] || ln -s "$library" "$site/nvidia/" || return
        done
}

# Each in an empty folder, with the installed packages alone. bash ignores set -e in a condition: && throughout.
plan() { ddp-launch --cpu --nproc 2 --dry-run --json | python -c 'import json, sys; assert json.load(sys.stdin)["nproc_per_node"] == 2'; }
elastic() { ddp-launch --cpu --nproc 2 --max-restarts 1 "$root/scripts/test_matrix_program.py" | grep 'sum 1.0 in attempt 1'; }
trainer() { ddp-launch --cpu --nproc 2 --dataset digits --epochs 2 --out-dir run; }
resume() { ddp-launch --cpu --nproc 1 --resume run --epochs 3 && python -c 'import json; assert len(json.load(open("run/training_history.json"))["epochs"]) == 3'; }
export_() { python -m ddp_train.export run -o model.pt2 && python -c 'import torch; torch.export.load("model.pt2")'; }

row() { printf '%-10s %-14s' "$1" "$2"; printf ' %-8s' "${@:3}"; printf '\n'; }

# A row of the table: for each step "ok", "FAILED" or "-" (not tried); the end of a failed step's output on stderr.
cell() {
    local step version words=() failed=""
    mkdir "$work/here"
    for step in "${steps[@]}"; do
        if [ -n "$failed" ]; then words+=("-"); continue; fi
        if (
            if [ "$step" = install ]; then install "$1" "$2"; exit; fi
            cd "$work/here" || exit
            unset PYTHONPATH
            export PATH="$work/env/bin:$PATH" XDG_CACHE_HOME="$work/cache"
            "${step/export/export_}"
        ) >"$work/log" 2>&1 </dev/null; then
            words+=("ok")
        else
            words+=("FAILED") failed="$step"
            tail -n 20 "$work/log" >&2
        fi
    done
    version=$("$work/env/bin/python" -c 'import torch; print(torch.__version__)' 2>/dev/null || printf '%s' "$2")
    row "$("$1" -c 'import platform; print(platform.python_version())')" "$version" "${words[@]}"
    rm -rf "$work/env" "$work/here" "$work/cache"
    [ -z "$failed" ]
}

# From a copy: a build leaves files beside the sources, which the next one would take into the wheel.
mkdir "$work/source"
cp -r "$root"/{pyproject.toml,setup.py,README.md,LICENSE,ddp_core,gpu_topology,ddp_launch,ddp_train} "$work/source"
"${pythons[0]}" -m venv "$work/build"
"$work/build/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps -w "$work/dist" "$work/source"
wheel=$(echo "$work"/dist/*.whl)
row python torch "${steps[@]}"
status=0
for python in "${pythons[@]}"; do
    for torch in "${torches[@]}"; do
        cell "$python" "$torch" || status=1
    done
done
exit "$status"
