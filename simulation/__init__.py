"""Boards that do not exist, and a runtime library that needs none.

`boards`: the shipped agent with simulated workers. `hollow`: sessions without a board behind them. `runtime`: the vendor's library without
an NPU.
"""
