#!/usr/bin/env bash
# Make the virtual environment VENV with the locked packages. Usage: install.sh PYTHON VENV
# Needs only python3 (>= 3.11); fetches uv, with pip, where it is not installed.
set -euo pipefail
python=$1
venv=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python is $("$python" --version), and 3.11 or newer is needed;" \
        "name one: make PYTHON=python3.11 ..." >&2
    exit 2
}

find_uv() {
    if command -v uv >/dev/null; then
        command -v uv
    elif [ -x .uv/bin/uv ]; then
        echo .uv/bin/uv
    elif { "$python" -m venv .uv && .uv/bin/python -m pip install --quiet uv; } >&2; then
        echo .uv/bin/uv
    elif { rm -rf .uv && "$python" -m pip install --quiet --target .uv uv; } >&2; then
        echo .uv/bin/uv
    else
        echo "error: cannot fetch uv with pip; install python3-venv or python3-pip, or uv" >&2
        return 2
    fi
}

uv=$(find_uv)
[ -x "$venv/bin/python" ] || "$uv" venv --quiet --python "$python" "$venv"
echo "installing the packages of requirements.lock into $venv"
"$uv" pip sync --quiet --compile-bytecode --require-hashes --python "$venv/bin/python" requirements.lock
"$uv" pip install --quiet --no-deps --python "$venv/bin/python" --editable .
