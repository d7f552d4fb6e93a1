"""The PC side: convert, quantize, simulate and prove a model before a single board sees it.

`checkpoint` reads files, `simulate` runs them in numpy, `quantize` makes them small, `evaluate` says what that cost, `convert` drives the
vendor's toolkit, `package` sends the result to the registry; `commands` is `rkfleet toolkit`.

One form of a model runs through all of it: tensors under GGUF names and in GGUF layout (llama.cpp's conventions), whatever the file was,
and `Hyperparameters`. Families know how other files become that.
"""
