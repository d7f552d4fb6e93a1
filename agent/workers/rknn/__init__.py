"""Image encoders on the NPU: a `.rknn` file in a process of its own, which turns images into the embeddings of a vision model.

`images` reads what clients send, `settings` what the artifact says about its encoder, `encoder` is the side of the worker, `child` the
process, `pixels` what it does to an image before the NPU gets it, `frames` what goes over the pipe between them.
"""
