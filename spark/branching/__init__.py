"""spark/branching"""
