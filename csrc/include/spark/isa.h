// Which vector instructions the kernels use, found once at run time.
#pragma once

enum SparkIsa { SPARK_ISA_PLAIN = 0, SPARK_ISA_AVX2 = 1, SPARK_ISA_AVX512 = 2 };

extern "C" SparkIsa spark_cpu_isa();
