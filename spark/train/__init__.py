"""spark/train"""
