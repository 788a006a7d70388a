# The install tree: bin/heed where PyTorch is used, and the kernels as a library without PyTorch,
# found by find_package(Heed) as the target Heed::kernels (component `kernels` alone installs those).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

if(TARGET heed)
  set_target_properties(heed PROPERTIES INSTALL_RPATH "${HEED_TORCH_RPATH}")
  install(TARGETS heed RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT program)
  install(DIRECTORY ${CMAKE_SOURCE_DIR}/models/builtin DESTINATION ${CMAKE_INSTALL_DATADIR}/heed/models
    COMPONENT program)
endif()
if(TARGET heed_cuda)
  install(TARGETS heed_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cuda EXCLUDE_FROM_ALL)
endif()
if(NOT TARGET heed_kernel)
  return()
endif()

set_target_properties(heed_kernel PROPERTIES OUTPUT_NAME heed_kernels EXPORT_NAME kernels)
install(TARGETS heed_kernel EXPORT HeedTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT kernels
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${CMAKE_SOURCE_DIR}/include/heed DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT kernels
  FILES_MATCHING PATTERN "*.h")
set(HEED_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/Heed)
install(EXPORT HeedTargets NAMESPACE Heed:: DESTINATION ${HEED_CMAKE_DIR} COMPONENT kernels)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/HeedConfig.cmake.in ${CMAKE_BINARY_DIR}/HeedConfig.cmake
  INSTALL_DESTINATION ${HEED_CMAKE_DIR})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/HeedConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/HeedConfig.cmake ${CMAKE_BINARY_DIR}/HeedConfigVersion.cmake
  DESTINATION ${HEED_CMAKE_DIR} COMPONENT kernels)
