"""The ways in which a board with an NPU fails that are known by name: a table, and how each is recognised. Pure, no I/O.

`modes` is the table, `lines` recognises a mode from what a worker and the kernel said, `facts` from plain values such as clocks. Called
by `agent/workers/backends.py` at the end of a worker and by whatever looks at the board (`agent/board`); below both, because both ask.
"""
