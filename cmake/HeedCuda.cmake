# The CUDA plugin, libheed_cuda.so: every .cu file below src/kernel, behind the C interface of
# src/kernel/cuda/cuda_plugin_abi.h, without PyTorch. HEED_CUDA=AUTO offers it as the target
# `heed_cuda` where nvcc is found, ON also makes it part of `all`, OFF leaves it out.
set(HEED_CUDA_ARCHITECTURES "90a-real;80-real" CACHE STRING "Architectures that the CUDA plugin is compiled for")
if(HEED_CUDA STREQUAL "OFF")
  return()
endif()
find_program(HEED_NVCC nvcc PATHS ENV CUDA_HOME /usr/local/cuda PATH_SUFFIXES bin)
if(NOT HEED_NVCC)
  if(NOT HEED_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "HEED_CUDA=${HEED_CUDA}, but nvcc was not found. Put it on PATH, or set CUDA_HOME or HEED_NVCC.")
  endif()
  return()
endif()
if(HEED_CUDA STREQUAL "AUTO" AND NOT HEED_NVCC_WORKS STREQUAL HEED_NVCC)
  # An nvcc that cannot use this machine's compiler must not stop a build for the CPU.
  file(WRITE ${CMAKE_BINARY_DIR}/CMakeFiles/nvcc_check.cu "int main() { return 0; }\n")
  execute_process(COMMAND ${HEED_NVCC} -arch=sm_80 -c nvcc_check.cu -o nvcc_check.o
    WORKING_DIRECTORY ${CMAKE_BINARY_DIR}/CMakeFiles RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
  if(failed)
    message(STATUS "${HEED_NVCC} does not compile for sm_80 with this compiler: no CUDA plugin")
    return()
  endif()
  set(HEED_NVCC_WORKS ${HEED_NVCC} CACHE INTERNAL "The nvcc that was found to work")
endif()
set(CMAKE_CUDA_COMPILER ${HEED_NVCC})
set(CMAKE_CUDA_ARCHITECTURES ${HEED_CUDA_ARCHITECTURES})
enable_language(CUDA)

file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernel/*.cu)
add_library(heed_cuda SHARED ${cuda_sources})
if(HEED_CUDA STREQUAL "AUTO")
  set_target_properties(heed_cuda PROPERTIES EXCLUDE_FROM_ALL ON)
endif()
target_include_directories(heed_cuda PRIVATE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/include)
# The static runtime: the plugin then needs nothing but the driver, whatever toolkit PyTorch uses.
set_target_properties(heed_cuda PROPERTIES CUDA_STANDARD 17 CUDA_RUNTIME_LIBRARY Static CXX_VISIBILITY_PRESET default)
message(STATUS "CUDA plugin with ${HEED_NVCC} for ${HEED_CUDA_ARCHITECTURES}")
