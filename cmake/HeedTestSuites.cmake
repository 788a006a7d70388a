# Read by ctest as it starts: the tests of a GoogleTest program, one for each suite. A test of its own
# for each of hundreds of small tests would spend its time on starting processes that load PyTorch;
# what failed inside a suite stands in its output (ctest --output-on-failure).
#
# heed_add_suites(PROGRAM NAME LABEL TIMEOUT ENVIRONMENT LIST): ctest's names are NAME.SUITE; LIST is a
# file that keeps the suites until PROGRAM is newer.
function(heed_add_suites program name label timeout environment list)
  if(NOT EXISTS "${program}")
    add_test(${name}_NOT_BUILT ${name}_NOT_BUILT)
    return()
  endif()
  if(NOT EXISTS "${list}" OR "${program}" IS_NEWER_THAN "${list}")
    execute_process(COMMAND "${program}" --gtest_list_tests OUTPUT_VARIABLE text RESULT_VARIABLE code
      ERROR_VARIABLE text_of_errors)
    if(NOT code EQUAL 0)
      message(FATAL_ERROR "${program} does not list its tests (${code}):\n${text_of_errors}")
    endif()
    # Suites begin a line and end in a dot (a comment may follow), tests are indented.
    string(REGEX MATCHALL "(^|\n)[A-Za-z0-9_/]+\\." suites "${text}")
    string(REGEX REPLACE "[\n.]" "" suites "${suites}")
    file(WRITE "${list}" "${suites}")
  endif()
  file(READ "${list}" suites)
  foreach(suite ${suites})
    add_test("${name}.${suite}" "${program}" "--gtest_filter=${suite}.*")
    set_tests_properties("${name}.${suite}" PROPERTIES LABELS ${label} TIMEOUT ${timeout}
      ENVIRONMENT "${environment}")
  endforeach()
endfunction()
