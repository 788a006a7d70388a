#!/usr/bin/env bash
# ./heed on machines that are not this one: systems, processors and PyTorch releases that it must
# refuse with a sentence, and what it must leave alone. Works on a copy, so that the checkout's own
# build and environments are not touched, and never reaches a network: every case stops before.
set -u

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
failures=0
cp "$HEED_SOURCE_DIR/heed" "$temporary/heed"
cd "$temporary" || exit 1
unset HEED_TORCH_DIR VIRTUAL_ENV CONDA_PREFIX HEED_YES HEED_HOME HEED_NO_BUILD
export HEED_CACHE_DIR=$temporary/cache

# expect NAME EXIT_CODE TEXT COMMAND...: the command ends so and says so on stdout or stderr.
expect() {
  local name=$1 code=$2 text=$3 output got
  shift 3
  output=$("$@" 2>&1 </dev/null)
  got=$?
  if [ "$got" != "$code" ] || ! grep -qF -- "$text" <<<"$output"; then
    printf 'FAILED %s: exit %s (expected %s), expected to read "%s" in:\n%s\n' "$name" "$got" "$code" "$text" "$output"
    failures=$((failures + 1))
  fi
}

torch_folder() { # FOLDER VERSION: something that looks like PyTorch of that version
  mkdir -p "$1/lib"
  touch "$1/lib/libtorch_cpu.so"
  printf "__version__ = '%s'\n" "$2" >"$1/version.py"
}

printf 'PRETTY_NAME="Fedora Linux 40"\nID=fedora\n' >fedora
sed 's/avx2/avx/g' /proc/cpuinfo >old-cpu
torch_folder old/torch 2.10.0+cpu
torch_folder new/torch 2.110.0
torch_folder good/torch 2.11.0+cpu
mkdir -p "env/lib/python3.11/site-packages"
torch_folder env/lib/python3.11/site-packages/torch 2.9.1

expect "usage without a build" 0 "./heed demo" ./heed --help
expect "another system" 1 "this is Fedora Linux 40" env HEED_OS_RELEASE=fedora ./heed demo
expect "doctor on another system" 1 "this is Fedora Linux 40" env HEED_OS_RELEASE=fedora ./heed doctor
expect "an old processor" 1 "no AVX2" env HEED_CPUINFO=old-cpu ./heed list
expect "a PyTorch too old" 1 "Heed needs PyTorch 2.11" env HEED_TORCH_DIR=old/torch ./heed list
expect "2.110 is not 2.11" 1 "Heed needs PyTorch 2.11" env HEED_TORCH_DIR=new/torch ./heed list
expect "no PyTorch where one was named" 1 "no PyTorch" env HEED_TORCH_DIR=nowhere ./heed doctor
expect "PyTorch by name" 0 "good/torch" env HEED_TORCH_DIR=good/torch ./heed doctor
expect "another release in the active environment" 0 "it is left alone" env VIRTUAL_ENV="$temporary/env" ./heed doctor
printf "__version__ = '2.11.0'\n" >env/lib/python3.11/site-packages/torch/version.py
expect "PyTorch of the active environment" 0 "env/lib/python3.11/site-packages/torch" \
  env VIRTUAL_ENV="$temporary/env" ./heed doctor
expect "clean takes no other word" 2 "not everything" ./heed clean everything

mkdir -p build/release .venv/lib .venv-interop cache
touch .venv-interop/.made-by-heed
expect "clean removes the build" 0 "removed" ./heed clean
if [ -e build ] || [ ! -e .venv ] || [ ! -e .venv-interop ]; then echo "FAILED clean took the wrong folders"; failures=$((failures + 1)); fi
expect "clean --all keeps what it did not make" 0 "was not made by ./heed" ./heed clean --all
if [ ! -e .venv ] || [ -e .venv-interop ] || [ -e cache ]; then echo "FAILED clean --all took the wrong folders"; failures=$((failures + 1)); fi

# A program that is built runs at once with its arguments, its exit code and its place in HEED_HOME.
mkdir -p build/release/bin
# shellcheck disable=SC2016  # expanded by the program's shell
printf '#!/bin/sh\necho "$HEED_HOME|$#|$2"\nexit 7\n' >build/release/bin/heed
chmod +x build/release/bin/heed
expect "arguments and exit code" 7 "$temporary|3|two words" env HEED_NO_BUILD=1 ./heed show "two words" x
expect "--yes is the launcher's" 7 "|2|" env HEED_NO_BUILD=1 ./heed demo --yes --quick

# Setting up, building and testing, with tools that only say what they were asked for.
rm -rf build .heed
mkdir fakes
# shellcheck disable=SC2016
{
  printf '#!/bin/sh\nif [ "$1" = --version ]; then echo "cmake version 3.28.0"; exit; fi\necho "cmake $*" >>"$FAKES/log"\nmkdir -p build/release/bin\ntouch build/release/build.ninja\n' >fakes/cmake
  printf '#!/bin/sh\necho "ninja $*" >>"$FAKES/log"\nprintf "#!/bin/sh\\necho ran\\n" >build/release/bin/heed\nchmod +x build/release/bin/heed\n' >fakes/ninja
  printf '#!/bin/sh\necho "ctest $*"\n' >fakes/ctest
  printf '#!/bin/sh\nshift 3\nfor p in "$@"; do echo "installed $p"; done\n' >fakes/dpkg-query
  printf '#!/bin/sh\necho 12\n' >fakes/g++
}
chmod +x fakes/*
with_fakes() { env PATH="$temporary/fakes:$PATH" FAKES="$temporary/fakes" HEED_TORCH_DIR=good/torch HEED_ANY_SYSTEM=1 "$@"; }
log_has() { # NAME TEXT
  grep -qF -- "$2" fakes/log || { printf 'FAILED %s: no "%s" in:\n%s\n' "$1" "$2" "$(cat fakes/log)"; failures=$((failures + 1)); }
}
touch fakes/log
expect "setup builds nothing" 0 "./heed build builds the program" with_fakes ./heed setup
if [ -s fakes/log ]; then echo "FAILED setup built something"; failures=$((failures + 1)); fi
expect "build runs nothing" 0 "built $temporary/build/release/bin/heed" with_fakes ./heed build
log_has "build" "ninja -C $temporary/build/release"
log_has "build without tests" "-DHEED_TESTS=OFF"
expect "test hands its arguments on" 0 "-R attend" with_fakes ./heed test -R attend
log_has "test builds the tests" "heed tests"
log_has "test configures them" "-DHEED_TESTS=ON -DHEED_INTEROP_PYTHON="
expect "test says what it leaves out" 0 "--all runs them too" with_fakes ./heed test
expect "test --all" 0 "ctest --output-on-failure" with_fakes env HEED_INTEROP_PYTHON=/some/python ./heed test --all
log_has "test --all takes an environment" "-DHEED_INTEROP_PYTHON=/some/python"

if [ "$failures" = 0 ]; then echo "all cases as expected"; else exit 1; fi
