"""spark/rollout"""
