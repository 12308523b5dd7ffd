#!/bin/sh
# Builds dist/sigma; all logic is in packaging/build.py. PYTHON names the Python to use. Arguments go through.
cd "$(dirname "$0")" || exit 1
exec "${PYTHON:-python3}" packaging/build.py "$@"
