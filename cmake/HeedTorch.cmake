# PyTorch's C++ library from the `torch` wheel, as imported targets of our own: torch_cpu and c10
# alone (libtorch.so and find_package(Torch) would pull in CUDA).
set(HEED_TORCH_VERSION "2.11" CACHE STRING "The release of PyTorch that Heed is built against")
set(HEED_TORCH_DIR "" CACHE PATH "Folder of the installed torch package (holds lib/ and include/)")
if(NOT HEED_TORCH_DIR AND DEFINED ENV{HEED_TORCH_DIR})
  set(HEED_TORCH_DIR "$ENV{HEED_TORCH_DIR}" CACHE PATH "" FORCE)
endif()
if(NOT HEED_TORCH_DIR)
  file(GLOB found ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  if(found)
    list(GET found 0 found)
    set(HEED_TORCH_DIR "${found}" CACHE PATH "" FORCE)
  endif()
endif()
if(NOT EXISTS "${HEED_TORCH_DIR}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "PyTorch ${HEED_TORCH_VERSION} was not found. Run ./heed doctor, or set HEED_TORCH_DIR to the folder of an installed torch package.")
endif()
if(EXISTS "${HEED_TORCH_DIR}/version.py")
  file(STRINGS "${HEED_TORCH_DIR}/version.py" torch_version REGEX "^__version__")
  string(REGEX MATCH "[0-9]+\\.[0-9]+[^']*" torch_version "${torch_version}")
  if(NOT torch_version MATCHES "^2\\.11[.+]")
    message(FATAL_ERROR "PyTorch ${torch_version} in ${HEED_TORCH_DIR}: Heed needs ${HEED_TORCH_VERSION}.")
  endif()
  message(STATUS "PyTorch ${torch_version} in ${HEED_TORCH_DIR}")
endif()

add_library(heed::torch INTERFACE IMPORTED GLOBAL)
target_include_directories(heed::torch SYSTEM INTERFACE
  ${HEED_TORCH_DIR}/include ${HEED_TORCH_DIR}/include/torch/csrc/api/include)
target_compile_definitions(heed::torch INTERFACE AT_PARALLEL_OPENMP=1)
# The wheels carry their own libgomp. Link that one: a process must have one pool of threads.
target_compile_options(heed::torch INTERFACE -fopenmp)
set(torch_gomp ${HEED_TORCH_DIR}/lib/libgomp.so.1)
if(NOT EXISTS ${torch_gomp})
  set(torch_gomp OpenMP::OpenMP_CXX)
endif()
# libtorch_cpu.so exports parts of std::filesystem of an older libstdc++; the system's must be found first
# (a program built by g++ 13 otherwise frees with one what the other allocated).
target_link_libraries(heed::torch INTERFACE stdc++
  ${HEED_TORCH_DIR}/lib/libtorch_cpu.so ${HEED_TORCH_DIR}/lib/libc10.so ${torch_gomp})
# Libraries that torch_cpu itself needs lie outside the linker's search path; they are found at run
# time through torch_cpu's own RPATH.
target_link_options(heed::torch INTERFACE -Wl,--allow-shlib-undefined
  -Wl,--unresolved-symbols=ignore-in-shared-libs)
file(GLOB torch_nvidia_libs ${HEED_TORCH_DIR}/../nvidia/*/lib)
set(HEED_TORCH_RPATH "${HEED_TORCH_DIR}/lib;${torch_nvidia_libs}")
list(APPEND CMAKE_BUILD_RPATH ${HEED_TORCH_RPATH})
