// Which vector instructions the kernels use.
#pragma once

enum SparkIsa { SPARK_ISA_PLAIN = 0, SPARK_ISA_AVX2 = 1, SPARK_ISA_AVX512 = 2 };

// The best this machine has; SPARK_ISA=plain|avx2|avx512 in the environment lowers it.
extern "C" SparkIsa spark_cpu_isa();
