// The torch-free host structures behind `spark_kernels._C`.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) { m.attr("abi") = 1; }
