"""spark/view"""
