# Decides whether _cuda is built.
#   CURVKERN_CUDA=AUTO  builds it where a CUDA compiler is on PATH or in CUDACXX, else not
#                 ON    fails when there is none
#                 OFF   never builds it
# pyproject.toml passes the environment variable of that name on.
# Sets CURVKERN_WITH_CUDA and CURVKERN_CUDA_STATUS, the sentence build_info() repeats.
set(CURVKERN_CUDA AUTO CACHE STRING "Build the CUDA module: AUTO, ON or OFF")
if(NOT CURVKERN_CUDA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "CURVKERN_CUDA: expected AUTO, ON or OFF, got ${CURVKERN_CUDA}")
endif()

set(CURVKERN_WITH_CUDA OFF)
if(CURVKERN_CUDA STREQUAL "OFF")
    set(CURVKERN_CUDA_STATUS "not built: CURVKERN_CUDA=OFF")
else()
    if(NOT CMAKE_CUDA_COMPILER)
        unset(CMAKE_CUDA_COMPILER CACHE)  # an earlier search that found nothing
    endif()
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
        set(CURVKERN_WITH_CUDA ON)
    elseif(CURVKERN_CUDA STREQUAL "ON")
        message(FATAL_ERROR
            "CURVKERN_CUDA=ON, but no working CUDA compiler was found: put nvcc on PATH, set "
            "CUDACXX to it, or choose CURVKERN_CUDA=OFF")
    else()
        set(CURVKERN_CUDA_STATUS "not built: no CUDA compiler on PATH or in CUDACXX")
    endif()
endif()

if(CURVKERN_WITH_CUDA)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        find_program(CURVKERN_NVIDIA_SMI nvidia-smi)
        if(CURVKERN_CUDA STREQUAL "ON")
            # Machine code for A100 and H100/H200; every other card since Turing compiles the PTX.
            set(CMAKE_CUDA_ARCHITECTURES 75-virtual 80-real 90-real)
        elseif(CURVKERN_NVIDIA_SMI)
            set(CMAKE_CUDA_ARCHITECTURES native)
        else()
            # A compiler and no card: PTX alone, which any card compiles when it loads it.
            set(CMAKE_CUDA_ARCHITECTURES 75-virtual)
        endif()
    endif()
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(CURVKERN_CUDA_STATUS "built with CUDA ${CUDAToolkit_VERSION}")
endif()
message(STATUS "curvkern: CUDA module ${CURVKERN_CUDA_STATUS}")
