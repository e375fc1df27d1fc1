#!/bin/sh
# Creates .venv and installs the project into it. Needs only a Python interpreter.
# PYTHON selects the interpreter. By default a usable .venv is kept, or the first suitable interpreter is used.
set -eu
cd "$(dirname "$0")/.."

venv=.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0

say() { printf 'bootstrap: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# True if the interpreter runs (a pyenv shim may not) and its version is in range.
fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1
}

has_pip() { "$1" -m pip --version >/dev/null 2>&1; }

short_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

find_python() {
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.11, 3.12 or 3.13 found. Install one (Debian, Ubuntu: apt-get install python3 python3-venv)" \
        "or specify one: make PYTHON=/path/to/python3.12"
}

with_venv() { "$python" -m venv --clear "$venv" >"$scratch/venv.log" 2>&1; }

# For a Python without ensurepip or venv: virtualenv has its own pip, and any pip can download it.
with_virtualenv() {
    for owner in "$python" python3 /usr/bin/python3; do
        if has_pip "$owner"; then
            "$owner" -m pip install -qq --target "$scratch/virtualenv" virtualenv &&
                PYTHONPATH="$scratch/virtualenv" "$python" -m virtualenv --quiet --clear "$venv" && return
        fi
    done
    return 1
}

with_apt() {
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
    package="python$(short_version "$python")-venv"
    say "installing the system package $package"
    apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >&2 && with_venv
}

make_environment() {
    with_venv || with_virtualenv || with_apt && return
    cat "$scratch/venv.log" >&2
    die "$python cannot create a virtual environment. Install its venv package" \
        "(Debian, Ubuntu: apt-get install python$(short_version "$python")-venv) and try again"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
    fits "$python" || die "PYTHON=$python does not run, or is not Python 3.11, 3.12 or 3.13"
    make_environment
elif ! fits "$venv/bin/python" || ! has_pip "$venv/bin/python"; then
    python=$(find_python)
    make_environment
fi

say "installing the project into $venv ($("$venv/bin/python" --version)); the first time takes a few minutes"
"$venv/bin/python" -m pip install -qq --editable '.[dev]'
