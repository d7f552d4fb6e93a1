"""`rkfleet toolkit`: one file a command, each thin over the packages beside this one."""
