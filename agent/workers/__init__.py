"""Child processes that run one model on one native library each."""
