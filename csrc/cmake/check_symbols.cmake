# cmake -D NM=... -D NAMESPACE=... -D OBJECTS=... -D STAMP=... -P check_symbols.cmake
#
# Fails if an object defines a weak or unique symbol outside the namespace of its instruction
# set.
foreach(object IN LISTS OBJECTS)
    execute_process(COMMAND ${NM} --defined-only ${object}
        OUTPUT_VARIABLE table COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX MATCHALL "[^\n]+ [WVu] [^\n]+" symbols "${table}")
    list(FILTER symbols EXCLUDE REGEX "isa_${NAMESPACE}")
    if(symbols)
        list(JOIN symbols "\n  " symbols)
        message(FATAL_ERROR "${object}: shared between instruction sets:\n  ${symbols}")
    endif()
endforeach()
file(TOUCH ${STAMP})
