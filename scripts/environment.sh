# Finds a Python and makes a virtual environment with StreamQ in it. Sourced by scripts/test and
# scripts/demo; pip works as this machine has it configured.

oldest_minor=11

# python_at PROGRAM MINOR: whether PROGRAM runs, is Python 3.MINOR, and can make environments.
python_at() {
    "$1" -c "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, $2))" >/dev/null 2>&1
}

# python_3 MINOR: print a working Python 3.MINOR, from PATH or from pyenv's folder.
python_3() {
    local candidate
    for candidate in "python3.$1" python3 python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$1".*/bin/python; do
        if python_at "$candidate" "$1"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

# any_python: print the Python to use: $PYTHON, or the oldest one that StreamQ supports, which every
# part of the tests can run on.
any_python() {
    local minor
    if [ -n "${PYTHON:-}" ]; then
        "$PYTHON" -c "import sys, ensurepip; sys.exit(sys.version_info < (3, $oldest_minor))" || {
            echo "PYTHON=$PYTHON is no Python 3.$oldest_minor or newer with the venv module" >&2
            return 1
        }
        command -v "$PYTHON"
        return 0
    fi
    for minor in 11 12 13 14; do
        python_3 "$minor" && return 0
    done
    echo "no Python 3.$oldest_minor or newer with the venv module: apt-get install python3 python3-venv" >&2
    return 1
}

# make_environment PYTHON FOLDER EXTRAS: install this checkout, editable, unless that has been done
# already for the same Python and the same pyproject.toml.
make_environment() {
    local python=$1 folder=$2 extras=$3 stamp
    stamp="$("$python" -V) $extras $PWD $(sha256sum <pyproject.toml)"
    if [ "$(cat "$folder/made-for" 2>/dev/null)" = "$stamp" ]; then
        return 0
    fi
    echo "making $folder ($("$python" -V), this checkout with $extras)" >&2
    rm -rf "$folder"
    "$python" -m venv "$folder" &&
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extras]" >&2 &&
        printf '%s\n' "$stamp" >"$folder/made-for"
}
