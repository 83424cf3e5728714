"""spark/engines/local"""
