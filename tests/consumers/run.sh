#!/usr/bin/env bash
# Builds and runs the consumer projects: tests/consumers/run.sh LIBTORCH_FOLDER WORK_FOLDER
# [BUILD_FOLDER [WAY]]. With BUILD_FOLDER, attzoo::compiled is installed from there instead of built
# anew. WAY, add_subdirectory, find_package, fetch_content, conan or makefile, is the only one of them.
set -euo pipefail
torch=$1
work=$2
build=${3:+$(cd "$3" && pwd)}
ways=("${4:-add_subdirectory}")
[ -n "${4:-}" ] || ways+=(find_package fetch_content conan makefile)
source=$(cd "$(dirname "$0")/../.." && pwd)
rm -rf "$work"
mkdir -p "$work"
work=$(cd "$work" && pwd)

# The library attzoo::compiled is built in each way; with ccache, once.
ccache=$(command -v ccache || true)
export CMAKE_CXX_COMPILER_LAUNCHER=$ccache

cmake -S "$source" -B "$work/attzoo" -DCMAKE_PREFIX_PATH="$torch" -DATTZOO_PCH=OFF
cmake --install "$work/attzoo" --prefix "$work/headers"  # nothing built: headers alone
cmake --build "${build:-$work/attzoo}" --target attzoo_compiled -j 2
cmake --install "${build:-$work/attzoo}" --prefix "$work/prefix"

export PKG_CONFIG_PATH="$work/prefix/lib/pkgconfig"
for way in "${ways[@]}"; do
  if [ "$way" = conan ]; then
    "$source/tests/consumers/conan.sh" "$torch" "$work/conan"
    continue
  fi
  if [ "$way" = makefile ]; then
    mkdir "$work/makefile"
    make -C "$work/makefile" -f "$source/tests/consumers/makefile/Makefile" -j 2 \
      CXX="$ccache ${CXX:-g++}"
    for program in header_only compiled mixed; do
      "$work/makefile/consumer_$program"
      echo "consumer by makefile, $program: ok"
    done
    continue
  fi
  cmake -S "$source/tests/consumers/$way" -B "$work/$way" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_PREFIX_PATH="$torch;$work/prefix" -DATTZOO_SOURCE_DIR="$source"
  cmake --build "$work/$way" -j 2
  for program in header_only compiled mixed; do
    "$work/$way/consumer_$program"
    echo "consumer by $way, $program: ok"
  done
done

# A mechanism and the tests that are installed; the library is optimised, these are not.
if [[ " ${ways[*]} " == *" find_package "* ]]; then
  cmake -S "$source/tests/consumers/testing" -B "$work/testing" -DCMAKE_BUILD_TYPE=None \
    -DCMAKE_PREFIX_PATH="$torch;$work/prefix" -DATTZOO_SOURCE_DIR="$source"
  cmake --build "$work/testing" -j 2
  "$work/testing/consumer_testing" --gtest_brief=1
  echo "consumer by find_package, attzoo::testing: ok"
fi

# The project that users copy, with what is installed.
cmake -S "$source/examples/starter" -B "$work/starter" -DCMAKE_PREFIX_PATH="$torch;$work/prefix"
cmake --build "$work/starter"
"$work/starter/starter" | grep -q "the fused CPU kernels"
echo "consumer that was copied from examples/starter: ok"

pkg-config --define-variable=torchdir=/elsewhere --cflags attzoo-compiled | grep -q /elsewhere/include

# Every package states the version of the header.
version=$(pkg-config --modversion attzoo-compiled)
grep -q "\"$version\"" "$work/prefix/share/cmake/attzoo/attzooConfigVersion.cmake"
printf '#include <attzoo/version.hpp>\n#if ATTZOO_VERSION >= 200\nATTZOO_VERSION_STRING\n#endif' |
  "${CXX:-g++}" -E -P -I "$work/prefix/include" -x c++ - | grep -q "\"$version\""
echo "consumer of version $version: header and packages agree"

# A package that was installed without building anything lacks the component.
test ! -e "$work/headers/lib/pkgconfig/attzoo-compiled.pc"
PKG_CONFIG_PATH="$work/headers/lib/pkgconfig" pkg-config --exists attzoo
if cmake -S "$source/tests/consumers/find_package" -B "$work/headers_only" \
    -DCMAKE_PREFIX_PATH="$torch;$work/headers" >"$work/headers_only.log" 2>&1; then
  echo "the component compiled should be missing" >&2
  exit 1
fi
grep -q "compiled" "$work/headers_only.log"
echo "consumer of a package without attzoo::compiled: is told"

# Without a build type one line says so, and Clang, which cannot optimise the kernels alone,
# optimises what uses them.
says="attzoo: no CMAKE_BUILD_TYPE is set"
for way in add_subdirectory find_package fetch_content; do
  configure=(cmake -S "$source/tests/consumers/$way" -DCMAKE_PREFIX_PATH="$torch;$work/prefix"
    -DATTZOO_SOURCE_DIR="$source" --fresh)
  env -u CXXFLAGS "${configure[@]}" -B "$work/plain" >"$work/plain.log"
  test "$(grep -c "$says" "$work/plain.log")" = 1
  env -u CXXFLAGS "${configure[@]}" -B "$work/plain" -DCMAKE_BUILD_TYPE=Release >"$work/plain.log"
  test "$(grep -c "$says" "$work/plain.log")" = 0
  if command -v clang++ >/dev/null; then
    env -u CXXFLAGS "${configure[@]}" -B "$work/plain" -DCMAKE_CXX_COMPILER=clang++ \
      -DCMAKE_EXPORT_COMPILE_COMMANDS=ON >"$work/plain.log"
    grep -q -- "-O2" "$work/plain/compile_commands.json"
  fi
  echo "consumer without a build type by $way: is told"
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
