"""What runs in the vendor's interpreter: `__main__.py` alone, in Python 3.8 and of the standard library, started by its directory."""
