# Sourced by run.sh and test.sh: makes .venv and keeps it in step with the requirements.
#
# prepare_environment EXTRA: EXTRA is "" or an extra of pyproject.toml, such as "dev". Installs only when what is
# required changed since the last complete install. Ends the calling script with status 2 and one line when python3
# is too old or cannot make a virtual environment.

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

prepare_environment() {
    local extra="$1" python="${PYTHON:-python3}" venv=.venv list stamp index
    # An environment without pip is half made, or uv's, which only lacks pip.
    if [ ! -x "$venv/bin/python" ] || ! { "$venv/bin/python" -m pip --version || "$venv/bin/python" -m ensurepip; } >/dev/null 2>&1; then
        make_environment "$python" "$venv"
    fi
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$venv has $("$venv/bin/python" --version 2>&1), and Python 3.11 or newer is needed: remove $PWD/$venv, or move it away"
    # The list of what is required is its own stamp: it is kept only after a complete install.
    list=$(required "$venv/bin/python" "$extra") || fail "requirements.txt or pyproject.toml cannot be read"
    stamp="$venv/installed${extra:+-$extra}.txt"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$list" ]; then
        printf 'Installing requirements.txt%s (the first time takes a few minutes)\n' "${extra:+ and the $extra extra}" >&2
        printf '%s\n' "$list" >"$stamp.wanted"
        index=$(torch_index "$venv/bin/python" "$list")
        if [ -n "$index" ]; then
            printf 'torch is taken from %s: it fits the driver and the GPUs of this machine\n' "$index" >&2
            # shellcheck disable=SC2046  # two words
            pip_install "$venv/bin/python" --index-url "$index" $(grep -E '^torch(vision)?\b' <<<"$list") ||
                printf 'note: that failed; torch is taken from PyPI, and may not run with this driver\n' >&2
        fi
        pip_install "$venv/bin/python" -r "$stamp.wanted" ||
            fail "the installation failed (the lines above say why$(little_space "$venv")); run the same command again to retry"
        # pip compiles on one processor; some packages hold templates that are no Python, which pip passes over too.
        "$venv/bin/python" -m compileall -q -j 0 "$venv"/lib/python*/site-packages >/dev/null 2>&1 || true
        mv "$stamp.wanted" "$stamp"
    fi
}

pip_install() { local python="$1"; shift; "$python" -m pip install --quiet --no-compile --disable-pip-version-check "$@"; }

# Where pip finds a torch that fits the driver; nothing where PyPI's does, and where the driver cannot be asked.
torch_index() {
    pip_install "$1" "$(grep '^nvidia-ml-py' <<<"$2")" >/dev/null 2>&1 || return 0
    PYTHONPATH=. "$1" scripts/torch_index.py 2>/dev/null || true
}

# A few words where FOLDER's disk may be the reason: 6 GB are installed (torch for CUDA), 3 more pass through TMPDIR.
little_space() {
    local free
    free=$(df -Pk "$1" | awk 'NR == 2 {printf "%d", $4 / 1000000}')
    [ "${free:-9}" -ge 9 ] || printf '; %s GB are free, and it takes 9 while it runs' "$free"
}

make_environment() {
    local python="$1" venv="$2"
    command -v "$python" >/dev/null 2>&1 ||
        fail "$python not found: install Python 3.11 or newer, or name one with PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version 2>&1) is too old: Python 3.11 or newer is needed; name another with PYTHON=/path/to/python3"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python has no venv module: install it (Debian and Ubuntu: apt install python3-venv) or name another Python with PYTHON=/path/to/python3"
    printf 'Making the virtual environment %s\n' "$venv" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "$python -m venv $venv failed (the lines above say why)"
}

# What EXTRA asks for, one requirement a line.
required() {
    "$1" - "$2" <<'PYTHON'
import sys, tomllib
lines = [line.split("#")[0].strip() for line in open("requirements.txt", encoding="utf-8")]
if sys.argv[1]:
    with open("pyproject.toml", "rb") as file:
        lines += tomllib.load(file)["project"]["optional-dependencies"][sys.argv[1]]
print("\n".join(filter(None, lines)))
PYTHON
}
