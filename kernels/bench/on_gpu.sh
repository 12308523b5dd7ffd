#!/usr/bin/env bash
# Runs named sets on a machine with a GPU and without an installation of the project, from the repository's root:
#     bash kernels/bench/on_gpu.sh tests bench-rms_norm
# Wheels in .whl/ are unpacked beside what python3 has. With OUT set, the result files are copied there, whatever failed.
set -u
cd "$(dirname "$0")/../.." || exit 1
export PYTHONPATH=.:kernels:app PYTHONUNBUFFERED=1

if ls .whl/*.whl >/dev/null 2>&1; then
    site=$(mktemp -d)
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl ||
        exit 1
    export PYTHONPATH="$PYTHONPATH:$site"
fi

failed=0
for set in "$@"; do
    echo "== $set"
    case $set in
    tests) python3 kernels/bench/gpu_tests.py ;;
    bench-*) python3 kernels/bench/run.py --op "${set#bench-}" ;;
    *) echo "unknown set $set; known: tests, bench-<op>" >&2 && false ;;
    esac || failed=1
done

if [ -n "${OUT:-}" ]; then
    for file in kernels/bench/results.csv kernels/bench/gpu_tests.jsonl; do
        [ -f "$file" ] && cp "$file" "$OUT/"
    done
fi
exit "$failed"
