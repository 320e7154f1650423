#!/usr/bin/env bash
# Where the CPU time of a server goes, by perf: `bench/profile.sh SERVER [CONNECTIONS]`, for example
# `bench/profile.sh fiber-uring 64`. Prints the share of the kernel, of the program and of libc, the
# functions that have most of it, and what of the kernel's is under which system call.
#
# Wants perf, and the two builds: cargo build --release; cargo build --release --manifest-path bench/Cargo.toml

set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

server="${1:?which server: see bench/target/release/servers --help}"
connections="${2:-64}"
scratch="$(mktemp -d)"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$scratch"' EXIT

port=$((20000 + RANDOM % 10000))
taskset -c 0 bench/target/release/servers "$server" --addr "127.0.0.1:$port" --protocol echo >"$scratch/server" &
pids+=($!)
profiled=$!
sleep 0.5
taskset -c 1 target/release/kapok load "127.0.0.1:$port" --protocol echo --connections "$connections" \
    --warmup 1 --seconds 6 >"$scratch/load" 2>&1 &
load=$!
sleep 1.5
perf record --quiet --output "$scratch/perf" --event cpu-clock --freq 1999 --call-graph fp --pid "$profiled" -- sleep 4 >/dev/null
wait "$load"

report() {
    perf report --input "$scratch/perf" --stdio --call-graph none --percent-limit 0.3 "$@" 2>/dev/null \
        | grep -v -e '^#' -e '^$' || true
}

printf '%s, echo of 64 bytes, %s connections, Linux %s, %s\n\n' \
    "$server" "$connections" "$(uname -r)" "$(date --iso-8601)"
printf 'by program\n'
report --no-children --sort dso
printf '\nby function, outside the kernel\n'
report --no-children --sort sym --dso "servers,libc.so.6,[vdso]"
printf '\nby system call, with all below it\n'
report --children --sort sym | grep -E '__x64_sys_|__do_sys_io_uring_enter|tcp_sendmsg_locked|tcp_recvmsg_locked|ep_poll$|io_run_local_work_loop' || true
