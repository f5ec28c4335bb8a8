#!/usr/bin/env bash
# Makes the Conan package in both ways and builds consumers of it: tests/consumers/conan.sh
# LIBTORCH_FOLDER WORK_FOLDER. Needs Conan 2 (pip install conan); without it, does nothing.
set -euo pipefail
if ! command -v conan >/dev/null; then
  echo "consumer by conan: skipped, no conan here"
  exit 0
fi
torch=$(cd "$1" && pwd)
rm -rf "$2"
mkdir -p "$2"
work=$(cd "$2" && pwd)
source=$(cd "$(dirname "$0")/../.." && pwd)

cd "$work"  # conan install writes presets where a CMakeLists.txt is
export CONAN_HOME="$work/home" CMAKE_PREFIX_PATH="$torch"
conan profile detect
settings=(-s compiler.cppstd=20 -c tools.build:jobs=2
  -c "tools.cmake.cmake_layout:test_folder=$work/test")
for compiled in False True; do
  conan create "$source" "${settings[@]}" -o "attzoo/*:compiled=$compiled"
  echo "consumer by conan, compiled=$compiled: ok"
done

# A project with a find_package(attzoo) and no word of Conan.
version=$(conan inspect "$source" | sed -n 's/^version: //p')
conan install --requires="attzoo/$version" "${settings[@]}" -o "attzoo/*:compiled=True" \
  -g CMakeToolchain -g CMakeDeps --output-folder="$work/install"
cmake -S "$source/tests/consumers/find_package" -B "$work/find_package" \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_TOOLCHAIN_FILE="$work/install/conan_toolchain.cmake"
cmake --build "$work/find_package" -j 2
for program in header_only compiled mixed; do
  "$work/find_package/consumer_$program"
  echo "consumer by conan and find_package, $program: ok"
done
