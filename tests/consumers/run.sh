#!/usr/bin/env bash
# Builds and runs the three consumer projects: tests/consumers/run.sh LIBTORCH_FOLDER WORK_FOLDER
set -euo pipefail
torch=$1
work=$2
source=$(cd "$(dirname "$0")/../.." && pwd)
rm -rf "$work"
mkdir -p "$work"
work=$(cd "$work" && pwd)

cmake -S "$source" -B "$work/attzoo" -DCMAKE_PREFIX_PATH="$torch" -DATTZOO_PCH=OFF
cmake --install "$work/attzoo" --prefix "$work/prefix"

for way in add_subdirectory find_package fetch_content; do
  cmake -S "$source/tests/consumers/$way" -B "$work/$way" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_PREFIX_PATH="$torch;$work/prefix" -DATTZOO_SOURCE_DIR="$source"
  cmake --build "$work/$way"
  "$work/$way/consumer"
  echo "consumer by $way: ok"
done

# Without a LibTorch the error says what to do, and nothing is downloaded.
if env -u CMAKE_PREFIX_PATH PATH=/usr/bin:/bin cmake -S "$source/tests/consumers/find_package" \
    -B "$work/none" -DCMAKE_PREFIX_PATH="$work/prefix" -DPython3_EXECUTABLE=/bin/false \
    >"$work/none.log" 2>&1; then
  echo "configuring without LibTorch should fail" >&2
  exit 1
fi
grep -q "LibTorch was not found" "$work/none.log"
test ! -e "$source/tests/consumers/find_package/.libtorch"
echo "consumer without LibTorch: the error is clear"
