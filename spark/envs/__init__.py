"""spark/envs"""
