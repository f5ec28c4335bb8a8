#!/usr/bin/env bash
# A fault that is planted into the kernels for each sanitizer, which must find it: were one silent,
# so would be the checks that lean on it.
#
#   tests/kernel/planted_faults.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
build=build/planted_faults
rm -rf "$build"

# Compiles a test of a copy whose text `from` became `to`, and runs it: plant SANITIZER FILE FROM TO TEST FINDS
plant() {
  local sanitizer=$1 file=$2 from=$3 to=$4 filter=$5 finds=$6 folder="$build/$1"
  mkdir -p "$folder"
  cp -r include "$folder"
  python3 - "$folder/include/attzoo/kernel/$file" "$from" "$to" <<'PYTHON'
import pathlib
import sys

path, before, after = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
text = path.read_text()
assert text.count(before) == 1, f"{path} has '{before}' {text.count(before)} times"
path.write_text(text.replace(before, after))
PYTHON
  g++ -O0 -g1 -fsanitize="$sanitizer" -fno-sanitize-recover=all -std=c++20 -I "$folder/include" -I tests \
    tests/kernel/few_queries_test.cpp -lgtest_main -lgtest -lpthread -o "$folder/test"
  if "$folder/test" --gtest_filter="$filter" >"$folder/log" 2>&1 || ! grep -q "$finds" "$folder/log"; then
    echo "$sanitizer did not say '$finds' of a fault in $file:" >&2
    tail -20 "$folder/log" >&2
    exit 1
  fi
  echo "$sanitizer: $(grep -om1 "$finds.*" "$folder/log")"
}

plant address rows.inc \
  'for (; i + N <= n; i += N) store(out + i, load(from + i) * splat(scale));' \
  'for (; i < n; i += N) store(out + i, load(from + i) * splat(scale));' \
  FewQueries.IsTheDefinition 'AddressSanitizer: .*' &
plant undefined decode/few_queries.hpp \
  'rows = (heads * queries + kRows - 1)' \
  'rows = (heads * queries * 0x20000000 / 0x20000000 + kRows - 1)' \
  FewQueries.IsTheDefinition 'signed integer overflow' &
plant thread decode/few_queries.hpp \
  'return ++done_[static_cast<size_t>(block)];' \
  'auto& n = done_[static_cast<size_t>(block)]; n.store(n.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed); return n.load(std::memory_order_relaxed);' \
  FewQueries.ResultsDoNotDependOnThreads 'data race' &
for job in $(jobs -p); do wait "$job"; done
