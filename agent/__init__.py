"""The program on each board: session, ledger, artifacts, workers, serving."""
