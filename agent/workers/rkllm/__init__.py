"""The vendor's runtime for language models, `librkllmrt.so`, by way of ctypes.

`identify` says which generation of the interface a file speaks and is all that the agent imports. `layouts`, `library` and `probe` map or
describe the library itself and are imported in worker processes only: a library that crashes takes its worker with it and nothing else.
"""
