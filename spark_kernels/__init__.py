"""spark_kernels"""
