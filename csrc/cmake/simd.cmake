# add_simd_library(<target> LONG <source>... SHORT <source>...)
#
# Compiles every source once per instruction set, each time inside its own C++ namespace
# (CURVKERN_ISA_NAMESPACE = v4, v3, v2; one "baseline" where the processor is not x86-64),
# and gathers the objects in the interface library <target>. SHORT sources are compiled together.
#
# An inline function outside these namespaces would be emitted once per instruction set under
# one name, and the linker could hand the AVX-512 copy to everybody: check_symbols.cmake refuses
# it.
#
# -fno-math-errno and -fno-trapping-math let the compiler vectorise without touching IEEE
# results; -ffast-math would change results and set flush-to-zero for the whole process.
#
# v2 is the fallback for processors before 2013 and is compiled for build time: -O1.
set(CURVKERN_KERNEL_FLAGS -O3 -fno-math-errno -fno-trapping-math -fopenmp-simd)
set(CURVKERN_CHECK_SYMBOLS ${CMAKE_CURRENT_LIST_DIR}/check_symbols.cmake)

function(add_simd_library target)
    cmake_parse_arguments(PARSE_ARGV 1 source "" "" "LONG;SHORT")
    add_library(${target} INTERFACE)
    set_source_files_properties(${source_LONG} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
        set(isas v4 v3 v2)
    else()
        set(isas baseline)
    endif()
    foreach(isa IN LISTS isas)
        set(objects ${target}_${isa})
        add_library(${objects} OBJECT ${source_LONG} ${source_SHORT})
        target_compile_features(${objects} PRIVATE cxx_std_20)
        target_compile_definitions(${objects} PRIVATE CURVKERN_ISA_NAMESPACE=${isa})
        target_compile_options(${objects} PRIVATE ${CURVKERN_KERNEL_FLAGS})
        if(NOT isa STREQUAL "baseline")
            target_compile_options(${objects} PRIVATE -march=x86-64-${isa})
        endif()
        if(isa STREQUAL "v4")
            target_compile_options(${objects} PRIVATE -mprefer-vector-width=512)
        elseif(isa STREQUAL "v2")
            target_compile_options(${objects} PRIVATE -O1)
        endif()
        target_include_directories(${objects} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
        set_target_properties(${objects} PROPERTIES
            POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden
            UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
        target_sources(${target} INTERFACE $<TARGET_OBJECTS:${objects}>)
        set(stamp ${CMAKE_CURRENT_BINARY_DIR}/${objects}.checked)
        add_custom_command(OUTPUT ${stamp}
            COMMAND ${CMAKE_COMMAND} -D NM=${CMAKE_NM} -D NAMESPACE=${isa} -D STAMP=${stamp}
                -D "OBJECTS=$<TARGET_OBJECTS:${objects}>" -P ${CURVKERN_CHECK_SYMBOLS}
            DEPENDS ${objects} $<TARGET_OBJECTS:${objects}> ${CURVKERN_CHECK_SYMBOLS}
            VERBATIM)
        add_custom_target(${objects}_checked ALL DEPENDS ${stamp})
    endforeach()
endfunction()
