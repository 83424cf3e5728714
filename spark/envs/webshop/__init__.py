"""WebShop: shopping for what an instruction asks, in the official catalogue or a synthetic one."""

from spark.envs.webshop.options import WebShopOptions

__all__ = ["WebShopOptions"]
