// Element types that cross the C ABI.
#pragma once

enum SparkDType { SPARK_F32 = 0, SPARK_BF16 = 1, SPARK_F16 = 2 };
