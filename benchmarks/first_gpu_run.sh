#!/usr/bin/env bash
# The first run on a GPU machine: is everything right there, and how fast is it? One command, the
# most telling first; each part has a limit of its own, and a table comes whatever happens.
#
#     bash benchmarks/first_gpu_run.sh OUT [SECONDS [JPEGS]]
#
# OUT: a folder for tables, JSON lines and logs. SECONDS: for all of it (540). JPEGS: class folders of
# images; needs DALI. Run it in the root of the repository. `python3` must have torch; what else is
# missing may lie in a folder of PYTHONPATH. PARTS="checks tiles steps" chooses parts.
set -uo pipefail
out=$1 budget=${2:-540} jpegs=${3:-}
parts=${PARTS:-checks tiles steps}
begin=$SECONDS
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"
logs=$out/logs && mkdir -p "$logs"
left() { echo $((budget - (SECONDS - begin))); }

run() { # NAME LIMIT COMMAND...: in the foreground; a line for the table
    local name=$1 limit=$2 rc=0 start=$SECONDS
    shift 2
    [ "$limit" -gt "$(left)" ] && limit=$(left)
    if [ "$limit" -lt 5 ]; then
        echo "$name | not begun: the time was over" >>"$out/parts.txt"
        return
    fi
    timeout -k 5 "$limit" "$@" >"$logs/$name.log" 2>&1 || rc=$?
    echo "$name | exit code $rc | $((SECONDS - start)) s of $limit | $(tail -n 1 "$logs/$name.log" | cut -c1-150)" >>"$out/parts.txt"
}

has() { [[ " $parts " == *" $1 "* ]]; }

: >"$out/parts.txt"
nvidia-smi >"$logs/machine.log" 2>&1
nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.used \
    --format=csv -l 2 >"$logs/clocks.csv" 2>/dev/null &
clocks=$!

if has checks; then # nothing is timed here, so they may run side by side
    run kernels 60 python3 -m resnet_dist.performance.kernels.verify &
    run tests 110 python3 -m pytest tests/gpu -q -n 4 --dist loadfile -p no:cacheprovider -p no:benchmark &
    run ddp_graph 100 python3 benchmarks/ddp_graph.py &
    for preset in plain graphed; do
        run "train_$preset" 100 python3 -m resnet_dist.train --config resnet50 data.loader=synthetic \
            "run.dir=$logs/run_$preset" train.max_steps=120 train.global_batch_size=128 \
            log.every_steps=20 "performance.preset=$preset" &
    done
    if has tiles; then # compiles what is timed below
        for kernel in moments apply backward_sums backward_apply apply_pool backward_sums_pool backward_apply_pool; do
            run "compile_$kernel" 90 python3 benchmarks/kernel_tiles.py --batch 16 --repeats 1 --kernels "$kernel" &
        done
    fi
    for job in $(jobs -p); do
        [ "$job" = "$clocks" ] || wait "$job"
    done
fi
has tiles && run tiles "${TILES_S:-60}" python3 benchmarks/kernel_tiles.py --repeats 7 --budget-s "$((${TILES_S:-60} - 8))"
if has steps; then
    seconds=$(($(left) - 8))
    run steps "$seconds" python3 benchmarks/gpu_step.py --out "$out/steps.jsonl" --budget-s "$((seconds - 5))" \
        ${STEPS:-} ${jpegs:+--jpegs "$jpegs"}
fi
kill "$clocks"
rm -rf "$logs"/run_*
echo "== parts"
cat "$out/parts.txt"
for name in tests ddp_graph tiles steps; do
    [ -f "$logs/$name.log" ] && echo "== $name" && grep -vE '^(SKIPPED|\.+ *\[)' "$logs/$name.log" | tail -n "${TAIL:-40}"
done
tar czf "$out/logs.tar.gz" -C "$out" logs && rm -rf "$logs"
