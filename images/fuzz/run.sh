#!/bin/sh
# Fuzz every parser of `images` for SECONDS each (20 where none are given). Fails at the first input that breaks a rule and
# leaves it in target/fuzz/found. Needs a C++ compiler, and nothing but stable Rust.
set -eu
seconds=${1:-20}
here=$(cd "$(dirname "$0")" && pwd)
target=$(cd "$here/../.." && pwd)/target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')

# An explicit --target keeps these flags out of build scripts, which could not be linked with them.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
export CARGO_TARGET_DIR="$target"
cargo build --quiet --release --manifest-path "$here/Cargo.toml" --target "$host" --bins

mkdir -p "$target/found"
for name in image table pack frame working_set criu; do
    echo "fuzz $name for $seconds s"
    mkdir -p "$target/corpus/$name"
    "$target/$host/release/$name" -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=10 \
        -print_final_stats=1 -artifact_prefix="$target/found/$name-" "$target/corpus/$name" "$here/../tests/golden" >"$target/$name.log" 2>&1 || {
        tail -n 40 "$target/$name.log"
        echo "fuzz $name: a rule was broken; the input is in $target/found, all output in $target/$name.log" >&2
        exit 1
    }
    grep -E '^(Done|stat::number_of_executed_units)' "$target/$name.log"
done
