# Finds what Heed is built on. Each block names the Debian package that brings it.
find_package(Threads REQUIRED)
find_package(OpenMP COMPONENTS CXX)
find_package(nlohmann_json 3.10 REQUIRED)  # nlohmann-json3-dev

# Highway (libhwy-dev). Debian ships it as a shared library only.
find_path(HWY_INCLUDE_DIR hwy/highway.h REQUIRED)
find_library(HWY_LIBRARY hwy REQUIRED)
add_library(heed::hwy INTERFACE IMPORTED)
target_include_directories(heed::hwy SYSTEM INTERFACE ${HWY_INCLUDE_DIR})
target_link_libraries(heed::hwy INTERFACE ${HWY_LIBRARY})

# Links the static library of a package where there is one: a binary then runs on another
# distribution beside PyTorch's own libraries.
function(heed_static_dependency target header library)
  string(MAKE_C_IDENTIFIER "${library}" id)
  find_path(${id}_INCLUDE_DIR ${header} REQUIRED)
  find_library(${id}_LIBRARY NAMES lib${library}.a ${library} REQUIRED)
  add_library(heed::${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(heed::${target} SYSTEM INTERFACE ${${id}_INCLUDE_DIR})
  target_link_libraries(heed::${target} INTERFACE ${${id}_LIBRARY})
endfunction()

heed_static_dependency(pcre2 pcre2.h pcre2-8)        # libpcre2-dev
heed_static_dependency(utf8proc utf8proc.h utf8proc)  # libutf8proc-dev
heed_static_dependency(lzma lzma.h lzma)              # liblzma-dev

# fmt, header-only (libfmt-dev)
find_path(FMT_INCLUDE_DIR fmt/format.h REQUIRED)
add_library(heed::fmt INTERFACE IMPORTED GLOBAL)
target_include_directories(heed::fmt SYSTEM INTERFACE ${FMT_INCLUDE_DIR})
target_compile_definitions(heed::fmt INTERFACE FMT_HEADER_ONLY)

find_path(SENTENCEPIECE_INCLUDE_DIR sentencepiece_processor.h REQUIRED)  # libsentencepiece-dev
find_library(SENTENCEPIECE_LIBRARY NAMES libsentencepiece.a sentencepiece REQUIRED)
add_library(heed::sentencepiece INTERFACE IMPORTED GLOBAL)
target_include_directories(heed::sentencepiece SYSTEM INTERFACE ${SENTENCEPIECE_INCLUDE_DIR})
target_link_libraries(heed::sentencepiece INTERFACE ${SENTENCEPIECE_LIBRARY})

if(HEED_TORCH)
  include(HeedTorch)
  find_package(CLI11 2.1 REQUIRED)  # libcli11-dev
  find_path(TOMLPLUSPLUS_INCLUDE_DIR toml++/toml.h REQUIRED)  # libtomlplusplus-dev
  add_library(heed::toml INTERFACE IMPORTED GLOBAL)
  target_include_directories(heed::toml SYSTEM INTERFACE ${TOMLPLUSPLUS_INCLUDE_DIR})
  target_compile_definitions(heed::toml INTERFACE TOML_HEADER_ONLY=1)
  heed_static_dependency(sqlite sqlite3.h sqlite3)  # libsqlite3-dev
  # CBC (coinor-libcbc-dev; EPL-2.0) with the libraries of COIN-OR under it, static where they are;
  # LAPACK and BLAS come shared, for their static forms need the Fortran compiler's own libraries.
  find_path(CBC_INCLUDE_DIR coin/Cbc_C_Interface.h REQUIRED)
  add_library(heed::cbc INTERFACE IMPORTED GLOBAL)
  target_include_directories(heed::cbc SYSTEM INTERFACE ${CBC_INCLUDE_DIR})
  foreach(library CbcSolver Cbc Cgl OsiClp ClpSolver Clp Osi CoinUtils bz2 z lapack blas)
    if(library MATCHES "^(lapack|blas)$")
      find_library(CBC_${library}_LIBRARY ${library} REQUIRED)
    else()
      find_library(CBC_${library}_LIBRARY NAMES lib${library}.a ${library} REQUIRED)
    endif()
    target_link_libraries(heed::cbc INTERFACE ${CBC_${library}_LIBRARY})
  endforeach()
endif()

if(HEED_TESTS)
  find_package(GTest REQUIRED)  # libgtest-dev
endif()
