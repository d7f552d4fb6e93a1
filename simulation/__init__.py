"""Boards that do not exist: the shipped agent with simulated workers (`boards`), and sessions without a board behind them (`hollow`)."""
