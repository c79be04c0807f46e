# Sourced by run.sh and test.sh: makes .venv and keeps it in step with the requirements.
#
# prepare_environment EXTRA: EXTRA is "" or "dev". Installs only when requirements.txt or
# pyproject.toml changed since the last complete install. Ends the calling script with status 2
# and one line when python3 is too old or cannot make a virtual environment.

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

prepare_environment() {
    local extra="$1" python="${PYTHON:-python3}" venv=.venv stamp wanted
    command -v "$python" >/dev/null 2>&1 || fail "$python not found: install Python 3.11 or newer, or name one with PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version 2>&1) is too old: Python 3.11 or newer is needed; name another with PYTHON=/path/to/python3"
    if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        "$python" -c 'import venv, ensurepip' 2>/dev/null ||
            fail "$python has no venv module: install it (Debian and Ubuntu: apt install python3-venv) or name another Python with PYTHON=/path/to/python3"
        printf 'Making the virtual environment %s\n' "$venv" >&2
        rm -rf "$venv"
        "$python" -m venv "$venv" || fail "$python -m venv $venv failed (the lines above say why)"
    fi
    stamp="$venv/installed${extra:+-$extra}"
    wanted=$(cat requirements.txt pyproject.toml | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        printf 'Installing requirements.txt%s (the first time takes a few minutes)\n' "${extra:+ and the $extra extra}" >&2
        install_requirements "$venv/bin/python" "$extra" || fail "the installation failed (the lines above say why); run the same command again to retry"
        printf '%s\n' "$wanted" >"$stamp"
    fi
}

install_requirements() {
    local python="$1" extra="$2"
    "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt || return 1
    [ -z "$extra" ] && return 0
    "$python" -c 'import sys, tomllib
print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]]))' "$extra" >".venv/requirements-$extra.txt" &&
        "$python" -m pip install --quiet --disable-pip-version-check -r ".venv/requirements-$extra.txt"
}
