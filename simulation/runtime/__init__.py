"""A runtime library without an NPU, `librkllmrt.so` in C: the vendor's interface, one build per generation. `build` makes it with gcc."""
