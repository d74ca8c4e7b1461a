#!/bin/sh
# Runs the kernel's tests and the main path on every other CPython of 3.11 to 3.13 that is on this machine.
set -eu
here=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for version in 3.11 3.12 3.13; do
    python=python$version
    # A version manager may hold one that is not on the path.
    if ! "$python" -c '' 2>/dev/null && command -v pyenv >/dev/null; then
        versions=${PYENV_ROOT:-$(dirname "$(dirname "$(readlink -f "$(command -v pyenv)")")")}/versions
        for found in "$versions/$version".*/bin/python; do
            if [ -x "$found" ]; then python=$found; fi
        done
    fi
    if [ "$version" = "$here" ]; then continue; fi
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "python $version: not here, skipped"
        continue
    fi
    environment=.venv-$version
    if [ ! -e "$environment/.made" ] || [ pyproject.toml -nt "$environment/.made" ]; then
        "$python" -m venv "$environment"
        "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[kafka,postgres]' hypothesis pytest pytest-timeout pytest-xdist
        touch "$environment/.made"
    fi
    echo "python $version:"
    "$environment/bin/python" -m pytest -q -n 2 tests/kernel tests/mission/test_k1_graph.py
done
