# cmake -D NM=... -D NAMESPACE=... -D OBJECTS=... -D STAMP=... -P check_symbols.cmake
#
# Fails if an object defines a weak function outside the namespaces of its instruction set,
# NAMESPACE and isa_NAMESPACE (core/hd.hpp). Tables of constants may be shared.
string(LENGTH "${NAMESPACE}" length)
foreach(object IN LISTS OBJECTS)
    execute_process(COMMAND ${NM} --defined-only ${object}
        OUTPUT_VARIABLE table COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX MATCHALL "[^\n]+ W [^\n]+" symbols "${table}")
    list(FILTER symbols EXCLUDE REGEX "(${length}|isa_)${NAMESPACE}")
    if(symbols)
        list(JOIN symbols "\n  " symbols)
        message(FATAL_ERROR "${object}: shared between instruction sets:\n  ${symbols}")
    endif()
endforeach()
file(TOUCH ${STAMP})
