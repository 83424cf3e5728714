"""spark/engines"""
