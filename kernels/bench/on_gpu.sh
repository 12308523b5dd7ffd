#!/usr/bin/env bash
# Runs named sets on a machine with a GPU and without an installation of the project, from the repository's root:
#     bash kernels/bench/on_gpu.sh tests bench-rms_norm
#     BENCH_ARGS='--shape T4096 --provider sigma' bash kernels/bench/on_gpu.sh bench-scan
#     ACCURACY_ARGS='--provider sigma' bash kernels/bench/on_gpu.sh accuracy
#     TUNE_ARGS='--only siso --minutes 5' bash kernels/bench/on_gpu.sh tune
#     PEERS_ARGS='--shape B8.T4096.H32.P64.N128.R1 --jobs 14' bash kernels/bench/on_gpu.sh peers bench-scan
#     bash kernels/bench/on_gpu.sh executable    (alone: it takes ten minutes, and needs .wheels/, see packaging/trial.py)
# Wheels in .whl/ and .peers/ are unpacked beside what python3 has; .peers/ also holds the libraries to compare with
# (peers.py). What others' kernels tuned is kept: autotune.tar.gz in .peers/ is read, and written with OUT set;
# TRITON_CACHE_AUTOTUNING=0 tunes them anew, from what is compiled already.
# With OUT set, the result files are copied there, whatever failed.
set -u
cd "$(dirname "$0")/../.." || exit 1
export PYTHONPATH=.:kernels:app PYTHONUNBUFFERED=1 TRITON_CACHE_AUTOTUNING="${TRITON_CACHE_AUTOTUNING:-1}"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$PWD/build/triton}"

wheels=()
for wheel in .whl/*.whl .peers/*.whl; do
    [ -f "$wheel" ] && wheels+=("$wheel")
done
if [ ${#wheels[@]} -gt 0 ]; then
    site=$(mktemp -d)
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
        "${wheels[@]}" || exit 1
    export PYTHONPATH="$PYTHONPATH:$site"
fi

mkdir -p "$TRITON_CACHE_DIR"
if [ -f .peers/autotune.tar.gz ]; then
    tar xzf .peers/autotune.tar.gz -C "$TRITON_CACHE_DIR" || exit 1
fi

failed=0
for set in "$@"; do
    echo "== $set"
    # shellcheck disable=SC2086 # the arguments are words
    case $set in
    tests) python3 kernels/bench/gpu_tests.py ;;
    bench-*) python3 kernels/bench/run.py --op "${set#bench-}" ${BENCH_ARGS:-} ;;
    accuracy) python3 kernels/bench/scan_accuracy.py ${ACCURACY_ARGS:-} ;;
    tune) python3 kernels/bench/tune.py --table "${OUT:-.}/tuned.json" ${TUNE_ARGS:-} ;;
    peers) python3 kernels/bench/peers_compile.py ${PEERS_ARGS:-} ;;
    executable) python3 packaging/trial.py ;;
    *) echo "unknown set $set; known: tests, bench-<op>, accuracy, tune, peers, executable" >&2 && false ;;
    esac || failed=1
done

if [ -n "${OUT:-}" ]; then
    for file in kernels/bench/results.csv kernels/bench/accuracy.csv kernels/bench/gpu_tests.jsonl; do
        [ -f "$file" ] && cp "$file" "$OUT/"
    done
    (cd "$TRITON_CACHE_DIR" && find . -name '*.autotune.json' -print0 | tar czf "$OUT/autotune.tar.gz" --null -T -)
fi
exit "$failed"
