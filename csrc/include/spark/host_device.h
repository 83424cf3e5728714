// Functions that the kernels of every device share.
#pragma once

#ifdef __CUDACC__
#define SPARK_HOST_DEVICE __host__ __device__
#else
#define SPARK_HOST_DEVICE
#endif
