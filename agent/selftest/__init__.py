"""First contact with a board: what a runtime library and a model can do here, tried out and written down.

`program` prints while `running` goes through the checks of `checks`, `speed` and `neighbours`, with a model that `subject` loads in the
worker that the agent ships. `asking` is how they ask it, `library` looks at runtime libraries, `board` at the machine, `report` writes what
was found. Nothing of it runs in an agent: `rkfleet doctor --self-test` is a program of its own, without a controller.
"""
