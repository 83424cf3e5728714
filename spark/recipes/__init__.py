"""spark/recipes"""
