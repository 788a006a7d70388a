#!/usr/bin/env bash
# libheed_kernels without PyTorch: built alone, installed, found by find_package(Heed) from
# examples/embed, and run from C and C++.
set -eu

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
build=$temporary/build prefix="$temporary/an install tree"

"$CMAKE" -S "$HEED_SOURCE_DIR" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER="$CXX" \
  -DHEED_TORCH=OFF -DHEED_TESTS=OFF -DHEED_CUDA=OFF >"$temporary/log"
"$CMAKE" --build "$build" --target heed_kernel >"$temporary/log" || { cat "$temporary/log"; exit 1; }
"$CMAKE" --install "$build" --component kernels --prefix "$prefix" >/dev/null

library=$(find "$prefix" -name libheed_kernels.a)
if nm -C "$library" 2>/dev/null | grep -E ' U .*(at::|c10::|torch::)'; then
  echo "the kernels need PyTorch"
  exit 1
fi

"$CMAKE" -S "$HEED_SOURCE_DIR/examples/embed" -B "$temporary/embed" -G Ninja -DCMAKE_CXX_COMPILER="$CXX" \
  -DCMAKE_PREFIX_PATH="$prefix" >"$temporary/log" || { cat "$temporary/log"; exit 1; }
"$CMAKE" --build "$temporary/embed" >"$temporary/log" || { cat "$temporary/log"; exit 1; }
for program in embed_c embed_cc; do
  if ldd "$temporary/embed/$program" | grep -E 'lib(torch|c10)'; then
    echo "$program needs PyTorch at run time"
    exit 1
  fi
  "$temporary/embed/$program"
done
