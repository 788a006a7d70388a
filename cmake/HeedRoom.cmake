# heed_room(NAME [TORCH] [FOLDERS folders...] [DEPENDS targets...]): one folder of src/ (NAME), or those named, as one
# static library `heed_NAME`. Every *.cc below belongs to it, but for folders that an earlier room has taken; adding a file
# needs no change here. A room may include only from the rooms it names (and those they name).
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fno-math-errno>)
# Warnings are errors with the compilers that every change is tested with; what a newer one finds must
# not stop its user.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  set(HEED_WERROR OFF CACHE BOOL "Warnings are errors")
else()
  set(HEED_WERROR ON CACHE BOOL "Warnings are errors")
endif()
set(HEED_WARNINGS -Wall -Wextra $<$<BOOL:${HEED_WERROR}>:-Werror> -Wno-unused-parameter
    -Wno-missing-field-initializers)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 reports false positives of these two inside the standard library at -O2 and above.
  list(APPEND HEED_WARNINGS -Wno-restrict -Wno-maybe-uninitialized -Wno-array-bounds
       -Wno-stringop-overflow -Wno-stringop-overread)
  # From g++ 13 on: references into a document that a function of several arguments returns.
  if(CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
    list(APPEND HEED_WARNINGS -Wno-dangling-reference)
  endif()
endif()
if(HEED_SANITIZE)
  add_compile_options(-fsanitize=${HEED_SANITIZE} -fno-omit-frame-pointer -g)
  add_link_options(-fsanitize=${HEED_SANITIZE})
endif()
if(HEED_COVERAGE)
  add_compile_options(--coverage)
  add_link_options(--coverage)
endif()
if(HEED_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

# Half of what a file that sees PyTorch costs is reading the precompiled header and instantiating what all of
# them instantiate: together several cost little more than one. Their anonymous namespaces are one, then.
option(HEED_UNITY "Compile the files of a room that see PyTorch several at a time" ON)
function(heed_unity target)
  if(HEED_UNITY)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 6)
  endif()
endfunction()

function(heed_room name)
  cmake_parse_arguments(R "TORCH" "" "FOLDERS;DEPENDS" ${ARGN})
  if(NOT R_FOLDERS)
    set(R_FOLDERS ${name})
  endif()
  set(sources "")
  foreach(folder ${R_FOLDERS})
    file(GLOB_RECURSE found CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*.cc)
    list(APPEND sources ${found})
  endforeach()
  list(FILTER sources EXCLUDE REGEX "/src/${name}/main/")
  get_property(taken GLOBAL PROPERTY heed_taken_folders)
  foreach(folder ${taken})
    list(FILTER sources EXCLUDE REGEX "/src/${folder}/")
  endforeach()
  set_property(GLOBAL APPEND PROPERTY heed_taken_folders ${R_FOLDERS})
  if(NOT sources)
    return()
  endif()
  add_library(heed_${name} STATIC ${sources})
  target_include_directories(heed_${name} PUBLIC
    $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/src> $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/include>)
  target_compile_options(heed_${name} PRIVATE ${HEED_WARNINGS})
  foreach(dep ${R_DEPENDS})
    if(TARGET ${dep} OR NOT dep MATCHES "^heed_")
      target_link_libraries(heed_${name} PUBLIC ${dep})
    endif()
  endforeach()
  if(R_TORCH)
    target_link_libraries(heed_${name} PUBLIC heed::torch heed::fmt)  # as heed_pch: equal flags
    target_precompile_headers(heed_${name} REUSE_FROM heed_pch)
    heed_unity(heed_${name})
  endif()
endfunction()

# heed_registry(FOLDER PATTERN PREFIX SIGNATURE [FILE source]): writes build/generated/heed/NAME_registry.inc, where NAME is
# FOLDER's last part. It declares and lists `PREFIX_STEM`, in namespace heed::NAME, for every file of src/FOLDER whose name
# matches PATTERN (a regular expression with one group, the stem). Static libraries would drop files that only register
# themselves; the list names each. The library heed_NAME sees it, or where FILE is given that file of src/ alone.
function(heed_registry folder pattern prefix signature)
  cmake_parse_arguments(R "" "FILE" "" ${ARGN})
  get_filename_component(room ${folder} NAME)
  file(GLOB files CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*.cc)
  set(declarations "")
  set(entries "")
  foreach(file ${files})
    get_filename_component(base ${file} NAME)
    if(base MATCHES "${pattern}")
      string(MAKE_C_IDENTIFIER "${CMAKE_MATCH_1}" stem)
      string(APPEND declarations "void ${prefix}_${stem}(${signature});\n")
      string(APPEND entries "    ${prefix}_${stem},\n")
    endif()
  endforeach()
  set(text "// Made by the build from the files of src/${folder}. Do not edit.\nnamespace heed::${room} {\n${declarations}\ninline constexpr void (*k_${room}_registry[])(${signature}) = {\n${entries}};\n}  // namespace heed::${room}\n")
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/heed/${room}_registry.inc CONTENT "${text}" @ONLY)
  if(R_FILE)
    set_property(SOURCE ${CMAKE_CURRENT_SOURCE_DIR}/${R_FILE} APPEND PROPERTY INCLUDE_DIRECTORIES
      ${CMAKE_BINARY_DIR}/generated)
  else()
    target_include_directories(heed_${room} PUBLIC $<BUILD_INTERFACE:${CMAKE_BINARY_DIR}/generated>)
  endif()
endfunction()
